"""Which connection of a lane takes which message, and what a message looks like on the wire."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from itertools import chain, repeat

import pytest

from tests.contracts.networks import identity_of
from tests.net.lane_peers import run
from zoonet.net.lanes.connection import Connection, Doorbell
from zoonet.net.lanes.links import LinkMeter
from zoonet.net.lanes.outgoing import OutgoingLane
from zoonet.net.lanes.tls import HEAD_BYTES, RECORD_BYTES, TlsSender

PEER = identity_of("right").peer_id
SEGMENT_BYTES = 1500  # of most networks, and more than a TCP segment has
MESSAGE = bytes(128 * 1024)


class Pipe:
    """A `SendingPipe` of a known speed, which sends as often as the test says."""

    def __init__(self, bytes_per_s: float) -> None:
        near, self._far = socket.socketpair()
        self.connection = Connection(near, PEER, stall_timeout_s=10.0)
        self.bytes_per_s = bytes_per_s
        self.may_send = threading.Semaphore(0)
        self.has_rested = threading.Event()
        self.has_slept = threading.Event()  # as nothing waited
        self.sent: list[bytes] = []

    def send(self, header: bytes, payload: memoryview) -> int:
        self.may_send.acquire()
        self.sent.append(header)
        return len(payload)

    def wait(self, doorbell: Doorbell, timeout_s: float | None = None) -> int:
        (self.has_slept if timeout_s is None else self.has_rested).set()
        self.connection.wait(doorbell, timeout_s)
        return 0

    def flush(self) -> int:
        return 0

    def close(self) -> None:
        self.connection.close()
        self._far.close()


def lane_of(*pipes: Pipe, num_stripes: Callable[[], int] = lambda: 16) -> OutgoingLane:
    lane = OutgoingLane(PEER, "direct", lambda *_: None, lambda _: None, num_stripes)
    for pipe in pipes:
        lane.add(pipe)
    return lane


def test_a_slow_connection_leaves_the_last_message_to_a_fast_one() -> None:
    fast, slow = Pipe(1e2), Pipe(0.1)  # it would rest for most of an hour

    async def story() -> None:
        lane = lane_of(fast, slow)
        lane.post(b"first", MESSAGE)
        lane.post(b"last", MESSAGE)
        await asyncio.to_thread(slow.has_rested.wait)
        fast.may_send.release(2)
        await lane.close()
        assert (fast.sent, slow.sent) == ([b"first", b"last"], [])

    run(story())


def test_a_slow_connection_does_not_rest_on_when_more_is_posted() -> None:
    fast, slow = Pipe(1e3), Pipe(5e2)  # it would rest for minutes

    async def story() -> None:
        lane = lane_of(fast, slow)
        slow.may_send.release(10)
        lane.post(b"first", MESSAGE)
        lane.post(b"second", MESSAGE)
        await asyncio.to_thread(slow.has_rested.wait)
        for number in range(8):
            lane.post(b"%d" % number, MESSAGE)
        while not slow.sent:
            await asyncio.sleep(0)
        fast.may_send.release(10)
        await lane.close()
        assert len(fast.sent) + len(slow.sent) == 10

    run(story())


def test_a_slow_connection_helps_while_there_is_much_to_send() -> None:
    fast, slow = Pipe(2e6), Pipe(1e6)

    async def story() -> None:
        lane = lane_of(fast, slow)
        slow.may_send.release()
        for number in range(20):
            lane.post(b"%d" % number, MESSAGE)
        while not slow.sent:
            await asyncio.sleep(0)
        fast.may_send.release(20)
        slow.may_send.release(20)
        await lane.close()
        assert len(fast.sent) + len(slow.sent) == 20

    run(story())


def test_a_connection_that_has_rested_long_enough_helps_whatever_the_others_do() -> None:
    stuck, slow = Pipe(1e8), Pipe(1e3)  # 5 ms would do, it was thought

    async def story() -> None:
        lane = lane_of(stuck, slow)
        slow.may_send.release()
        lane.post(b"first", MESSAGE)
        lane.post(b"last", MESSAGE)
        while not slow.sent:
            await asyncio.sleep(0)
        stuck.may_send.release()
        await lane.close()
        assert (stuck.sent, slow.sent) == ([b"first"], [b"last"])

    run(story())


def test_no_more_connections_send_than_the_line_has_room_for() -> None:
    first, second, third = pipes = [Pipe(1e6) for _ in range(3)]
    allowed = 1

    async def story() -> None:
        nonlocal allowed
        lane = lane_of(*pipes, num_stripes=lambda: allowed)
        for pipe in pipes:
            pipe.may_send.release(4)
        for number in range(4):
            lane.post(b"%d" % number, MESSAGE)
        while lane.unsent_bytes:
            await asyncio.sleep(0)
        assert (len(first.sent), second.sent, third.sent) == (4, [], [])
        allowed = 2  # the others have nothing to send any more
        lane.post(b"stuck", MESSAGE)
        lane.post(b"other", MESSAGE)
        while not second.sent:
            await asyncio.sleep(0)
        assert len(first.sent) == 4
        first.may_send.release()
        await lane.close()
        assert {*first.sent[4:], *second.sent} == {b"stuck", b"other"}
        assert third.sent == []

    run(story())


def test_a_connection_that_rests_helps_when_those_it_rests_for_must_stop() -> None:
    slow, fast = Pipe(1.0), Pipe(1e3)  # the fast one would take minutes
    allowed = 2

    async def story() -> None:
        nonlocal allowed
        lane = lane_of(slow, fast, num_stripes=lambda: allowed)
        slow.may_send.release()
        lane.post(b"first", MESSAGE)
        lane.post(b"last", MESSAGE)
        await asyncio.to_thread(slow.has_rested.wait)
        allowed = 1
        while not slow.sent:
            await asyncio.sleep(0)
        fast.may_send.release()
        await lane.close()
        assert (slow.sent, fast.sent) == ([b"last"], [b"first"])

    run(story())


def test_a_connection_wakes_those_that_it_rests_for() -> None:
    """They were not meant to send when the message was posted, and so were not asked."""
    slow, fast = Pipe(1.0), Pipe(1e3)  # there would be minutes to rest
    allowed = chain([1], repeat(2))

    async def story() -> None:
        lane = lane_of(slow, fast, num_stripes=lambda: next(allowed))
        await asyncio.to_thread(slow.has_slept.wait)
        await asyncio.to_thread(fast.has_slept.wait)
        fast.may_send.release()
        lane.post(b"message", MESSAGE)
        while lane.unsent_bytes:
            await asyncio.sleep(0)
        await lane.close()
        assert (slow.sent, fast.sent) == ([], [b"message"])

    run(story())


@pytest.mark.parametrize("num_bytes", [SEGMENT_BYTES, RECORD_BYTES, 128 * 1024])
def test_a_head_never_leaves_as_a_packet_of_its_own(num_bytes: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    with far:
        sender = TlsSender(Connection(near, PEER, stall_timeout_s=10.0), LinkMeter())
        payload = memoryview(bytes(num_bytes))
        sending = threading.Thread(target=sender.send, args=(b"header", payload))
        sending.start()
        writes = [far.recv(2 << 20)]
        while sum(map(len, writes)) < HEAD_BYTES + num_bytes:
            writes.append(far.recv(2 << 20))
        sending.join()
        assert len(writes[0]) >= SEGMENT_BYTES
        sender.close()
