"""Every lane that is open now, in both directions, and how all of them end."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import Counter
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, TransportError, ZoonetError
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.incoming import IncomingLane
from zoonet.net.lanes.outgoing import OutgoingLane, SendingPipe
from zoonet.net.lanes.shm import ShmReceiver
from zoonet.net.lanes.tls import TlsReceiver

CLOSE_S: Final = 3.0  # for all threads to end when the host closes
MAX_CONNECTIONS_PER_PEER: Final = 64  # incoming: each of them has a thread
GO: Final = b"\x01"  # from the sender: of the connections that came about, this one was chosen

log = logging.getLogger(__name__)


class LiveLanes:
    """Starts and ends lanes. Thread-safe."""

    def __init__(self, config: LanesConfig) -> None:
        self._config = config
        self._changed = threading.Condition()
        self._is_closed = False
        self._outgoing: set[OutgoingLane] = set()
        self._incoming: dict[Connection, IncomingLane] = {}
        self._num_incoming: Counter[PeerId] = Counter()
        self._leaving: set[Connection] = set()  # incoming ones that had to make room

    def start(self, lane: OutgoingLane, pipe: SendingPipe) -> None:
        """Choose a connection as a new lane's first. Raises TransportError where it broke."""
        with self._changed:
            is_closed = self._is_closed
            if not is_closed:
                self._outgoing.add(lane)
        try:
            if is_closed:
                raise TransportError("this peer is closing")
            pipe.connection.write(GO)
        except TransportError:
            pipe.close()
            self.gone(lane)
            raise
        lane.add(pipe)

    def extend(self, lane: OutgoingLane, pipe: SendingPipe) -> None:
        """Let a lane have another connection, unless it has ended meanwhile."""
        with self._changed:
            is_open = lane in self._outgoing and not self._is_closed
        try:
            if not is_open:
                raise TransportError("the lane has ended")
            pipe.connection.write(GO)
        except TransportError as error:
            log.debug("one connection less, peer=%s: %s", short(lane.peer_id), error)
            pipe.close()
            return
        lane.add(pipe)

    def gone(self, lane: OutgoingLane) -> None:
        """An outgoing lane has ended and its threads with it."""
        with self._changed:
            self._outgoing.discard(lane)
            self._changed.notify_all()

    def receive(self, lane: IncomingLane, connection: Connection, *, is_chosen: bool) -> None:
        """Receive until the connection ends, in the calling thread, and close it."""
        with self._changed:
            is_welcome = (
                not self._is_closed
                and self._num_incoming[lane.peer_id] < MAX_CONNECTIONS_PER_PEER
                and self._has_room(lane.peer_id)
            )
            if is_welcome:
                self._incoming[connection] = lane
                self._num_incoming[lane.peer_id] += 1
        if not is_welcome:
            log.debug("too many lanes, one not taken in, peer=%s", short(lane.peer_id))
            connection.close()
            return
        try:
            if is_chosen or self._wait_until_chosen(connection):
                is_tls = isinstance(connection.socket, ssl.SSLSocket)
                lane.run((TlsReceiver if is_tls else ShmReceiver)(connection, self._config))
        finally:
            connection.close()
            with self._changed:
                del self._incoming[connection]
                if connection in self._leaving:
                    self._leaving.discard(connection)
                else:
                    self._count_out(lane.peer_id)
                self._changed.notify_all()

    def arriving(self, peer_id: PeerId) -> dict[bytes, int] | None:
        """See `zoonet.transport.Lanes.arriving`."""
        with self._changed:
            lanes = {lane for lane in self._incoming.values() if lane.peer_id == peer_id}
        if not lanes:
            return None
        return {header: num for lane in lanes for header, num in lane.arriving().items()}

    def _has_room(self, newcomer: PeerId) -> bool:
        """Where all places are taken, end a connection of the peer that has most of them."""
        if len(self._incoming) - len(self._leaving) < self._config.max_connections:
            return True
        ((greediest, num_taken),) = self._num_incoming.most_common(1)
        if num_taken <= self._num_incoming[newcomer] + 1:
            return False
        victim = next(
            connection
            for connection, lane in self._incoming.items()
            if lane.peer_id == greediest and connection not in self._leaving
        )
        log.info("no room for lanes, one connection less for peer=%s", short(greediest))
        self._leaving.add(victim)
        self._count_out(greediest)
        victim.abort()
        return True

    def _count_out(self, peer_id: PeerId) -> None:
        self._num_incoming[peer_id] -= 1
        if not self._num_incoming[peer_id]:
            del self._num_incoming[peer_id]

    def receive_in_thread(self, lane: IncomingLane, connection: Connection) -> None:
        """Receive over a chosen connection in a thread of its own."""
        threading.Thread(
            target=self.receive,
            args=(lane, connection),
            kwargs={"is_chosen": True},
            name="lane-in",
            daemon=True,
        ).start()

    def _wait_until_chosen(self, connection: Connection) -> bool:
        try:
            wait_until_chosen(connection, self._config.handshake_timeout_s)
        except ZoonetError as error:
            log.debug("a connection was not chosen, peer=%s: %s", short(connection.peer_id), error)
            return False
        return True

    def end_channel(self, channel: str) -> None:
        """End the incoming lanes of a channel."""
        with self._changed:
            lanes = {lane for lane in self._incoming.values() if lane.channel == channel}
        for lane in lanes:
            lane.abort()

    def close(self) -> None:
        """End every lane, telling nobody, and wait for the threads. Blocks for up to CLOSE_S."""
        with self._changed:
            self._is_closed = True
            outgoing, incoming = list(self._outgoing), list(self._incoming.items())
        for lane in outgoing:
            lane.abort()
        for connection, incoming_lane in incoming:
            incoming_lane.abort()
            connection.abort()  # it may not have come as far as its lane
        with self._changed:
            self._changed.wait_for(lambda: not self._outgoing and not self._incoming, CLOSE_S)


def wait_until_chosen(connection: Connection, timeout_s: float) -> None:
    """Wait for the sender's GO. Raises TransportError or ProtocolViolation."""
    said = bytearray(len(GO))
    connection.read(memoryview(said), time.monotonic() + timeout_s)
    if said != GO:
        raise ProtocolViolation(connection.peer_id, "a lane that does not begin as one")
