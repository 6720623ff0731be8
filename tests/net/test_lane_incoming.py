"""What the thread of an incoming connection holds while it waits for the next message."""

from __future__ import annotations

import socket
import threading
import weakref

import numpy as np

from tests.contracts.networks import identity_of
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.incoming import IncomingLane, News
from zoonet.net.lanes.links import LinkMeter
from zoonet.transport.lanes import Path

PEER = identity_of("left").peer_id
NUM_BYTES = 4096


class Pipe:
    """A `ReceivingPipe` that brings one message and then waits."""

    path: Path = "direct"

    def __init__(self) -> None:
        near, self._far = socket.socketpair()
        self.connection = Connection(near, PEER, stall_timeout_s=10.0)
        self.waits, self.may_end = threading.Event(), threading.Event()
        self._messages = [(b"first", NUM_BYTES)]

    def next(self) -> tuple[bytes, int] | None:
        if self._messages:
            return self._messages.pop()
        self.waits.set()
        self.may_end.wait()
        return None

    def read_into(self, target: memoryview) -> None:
        target[:] = bytes(NUM_BYTES)

    def close(self) -> None:
        self.connection.close()
        self._far.close()


class OnceSink:
    """A `Sink` that lets go of the memory which a message has arrived in."""

    def __init__(self) -> None:
        self.place: np.ndarray | None = None
        self.ref: weakref.ref[np.ndarray] | None = None

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview | None:
        self.place = np.empty(num_bytes, np.uint8)
        self.ref = weakref.ref(self.place)
        return self.place.data

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        self.place = None

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        pass


def test_a_connection_that_waits_does_not_hold_the_memory_of_its_last_message() -> None:
    """It may be a piece of a whole vector, and the connection may never bring anything again."""
    pipe, sink = Pipe(), OnceSink()
    lane = IncomingLane(PEER, "channel", lambda _: sink, LinkMeter(), News(), patience_s=10.0)
    thread = threading.Thread(target=lane.run, args=(pipe,))
    thread.start()
    try:
        assert pipe.waits.wait(10.0)
        assert sink.ref is not None
        assert sink.ref() is None
    finally:
        pipe.may_end.set()
        thread.join()
