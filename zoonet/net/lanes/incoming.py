"""The receiving end of a lane: each of its connections has a thread that feeds the sink."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, StreamClosed, TransportError, ZoonetError
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.links import LinkMeter
from zoonet.transport.lanes import Path, Sink

LOOK_S: Final = 0.1  # at the latest, a sink is asked again where a payload goes

log = logging.getLogger(__name__)


class ReceivingPipe(Protocol):
    """A connection that brings messages. One thread uses it; errors are ZoonetErrors."""

    path: Path
    connection: Connection

    def next(self) -> tuple[bytes, int] | None:
        """Wait for a message and return its header and payload size; None at the end."""
        ...

    def read_into(self, target: memoryview) -> None:
        """Read the payload of that message, which has exactly the target's size."""
        ...

    def close(self) -> None:
        """Let go of the connection, from the thread that used it."""
        ...


class News:
    """Wakes the threads of lanes whose messages have to wait. Thread-safe."""

    def __init__(self) -> None:
        self._told = threading.Condition()
        self.number = 0

    def tell(self) -> None:
        """Something has changed: they look again."""
        with self._told:
            self.number += 1
            self._told.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Wait until there is news after number `seen`, or for so long."""
        with self._told:
            self._told.wait_for(lambda: self.number != seen, timeout_s)


class IncomingLane:
    """What arrives from one peer for one channel, over one or several connections."""

    def __init__(
        self,
        peer_id: PeerId,
        channel: str,
        sink_of: Callable[[str], Sink | None],
        meter: LinkMeter,
        news: News,
        patience_s: float,
    ) -> None:
        self.peer_id = peer_id
        self.channel = channel
        self._sink_of = sink_of
        self._meter = meter
        self._news = news
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pipes: set[ReceivingPipe] = set()
        self._under_way: dict[ReceivingPipe, bytes] = {}  # the header of what each reads now

    def run(self, pipe: ReceivingPipe) -> None:
        """Receive until the connection ends, in the calling thread, and close it."""
        with self._lock:
            is_late = self._ended.is_set()
            if not is_late:
                self._pipes.add(pipe)
        error: ZoonetError | None = None
        try:
            self._meter.listens(pipe.connection, pipe.path)
            if not is_late:
                self._receive_all(pipe)
        except ZoonetError as failure:
            error = failure
        except Exception as failure:
            # The boundary of a thread: a bug of a sink ends its own lane, loudly.
            log.exception("a lane from peer=%s failed", short(self.peer_id))
            error = TransportError(f"peer={short(self.peer_id)} lane failed: {failure!r}")
        self._meter.forget(pipe.connection)
        pipe.close()
        self._leave(pipe, error)

    def arriving(self) -> dict[bytes, int]:
        """Of messages that are under way, by header: how many bytes of the payload have come."""
        under_way = self._under_way.copy()
        return {header: pipe.connection.num_read for pipe, header in under_way.items()}

    def abort(self) -> None:
        """End it from our side: its sink is told nothing more."""
        self._ended.set()
        self._news.tell()
        with self._lock:
            for pipe in self._pipes:
                pipe.connection.abort()

    def _leave(self, pipe: ReceivingPipe, error: ZoonetError | None) -> None:
        with self._lock:
            self._pipes.discard(pipe)
            if self._ended.is_set() or (error is None and self._pipes):
                return
            self._ended.set()
            for other in self._pipes:
                other.connection.abort()
        reason = error or StreamClosed(f"peer={short(self.peer_id)} ended the lane")
        log.debug("lane from peer=%s ended: %s", short(self.peer_id), reason)
        if (sink := self._sink_of(self.channel)) is not None:
            sink.ended(self.peer_id, reason)

    def _receive_all(self, pipe: ReceivingPipe) -> None:
        while (message := pipe.next()) is not None:
            self._receive(pipe, *message)

    def _receive(self, pipe: ReceivingPipe, header: bytes, num_bytes: int) -> None:
        """Take one message. A thread that waits for the next one holds none of its memory."""
        sink = self._sink_of(self.channel)
        if sink is None or self._ended.is_set():
            raise StreamClosed(f"channel {self.channel!r} is served no more")
        target = self._admitted(sink, header, num_bytes)
        if num_bytes:
            self._meter.received.begin()
            pipe.connection.num_read = 0
            self._under_way[pipe] = header
            try:
                pipe.read_into(target)
            finally:
                del self._under_way[pipe]
                self._meter.received.end(num_bytes)
        sink.arrived(self.peer_id, header)

    def _admitted(self, sink: Sink, header: bytes, num_bytes: int) -> memoryview:
        seen = self._news.number
        target = sink.admit(self.peer_id, header, num_bytes)
        if target is None:
            target = self._admitted_later(sink, header, num_bytes, seen)
        if target.nbytes != num_bytes or target.readonly:
            raise ValueError(f"a sink gave {target.nbytes} bytes for a payload of {num_bytes}")
        return target.cast("B") if num_bytes else target

    def _admitted_later(self, sink: Sink, header: bytes, num_bytes: int, seen: int) -> memoryview:
        deadline = time.monotonic() + self._patience_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._news.wait(seen, min(left_s, LOOK_S))
            if self._ended.is_set():
                raise StreamClosed("the lane was ended here")
            seen = self._news.number
            if (target := sink.admit(self.peer_id, header, num_bytes)) is not None:
                return target
        raise ProtocolViolation(self.peer_id, "a message that nobody here waits for")
