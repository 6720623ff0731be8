"""What every Lanes promises, over streams in memory, streams of daemons, TLS and shared memory."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytest

from tests.contracts.networks import DaemonNetwork, Network, Peer, identity_of
from tests.net.lane_peers import DIRECT, SHM, Box, lane_pair
from zoonet.errors import PeerUnreachable, ProtocolViolation, ZoonetError
from zoonet.net.lanes import HostLanes
from zoonet.testing import MemorySwarm
from zoonet.transport import Lane, Lanes, StreamLanes

NUM_VALUES: Final = 700_001
CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """Lanes of two peers, and what the second one serves."""

    left: Lanes
    right: Lanes


Story = Callable[[Pair], Coroutine[Any, Any, None]]
Way = Callable[[Story], None]


def over_memory(story: Story) -> None:
    async def main() -> None:
        swarm = MemorySwarm()
        one, _ = swarm.peer(identity_of("left"))
        other, _ = swarm.peer(identity_of("right"))
        await story(Pair(StreamLanes(one), StreamLanes(other)))
        await one.close()
        await other.close()

    asyncio.run(main())


def over_daemons(story: Story) -> None:
    async def told(_: Network, left: Peer, right: Peer) -> None:
        await story(Pair(StreamLanes(left.transport), StreamLanes(right.transport)))

    DaemonNetwork().run(told, 2)


def over_hosts(story: Story) -> None:
    network = DaemonNetwork()

    async def told(_: Network, left: Peer, right: Peer) -> None:
        one, other = network.hosts[left.peer_id].lanes, network.hosts[right.peer_id].lanes
        await story(Pair(one, other))

    network.run(told, 2)


def over_hosts_by_tls(story: Story) -> None:
    """As between machines: what hosts do with each other, with shared memory switched off."""
    network = DaemonNetwork()

    async def told(_: Network, left: Peer, right: Peer) -> None:
        one, other = network.hosts[left.peer_id], network.hosts[right.peer_id]
        near = HostLanes(one.transport, DIRECT, one.routes_to)
        far = HostLanes(other.transport, DIRECT, other.routes_to)
        async with near.listening(), far.listening():
            await story(Pair(near, far))

    network.run(told, 2)


def over_tls(story: Story) -> None:
    _over(story, lambda: lane_pair(DIRECT))


def over_shm(story: Story) -> None:
    _over(story, lambda: lane_pair(SHM))


def _over(story: Story, pair: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), pair() as (left, right):
            await story(Pair(left.lanes, right.lanes))

    asyncio.run(main())


WAYS = {
    "memory": over_memory,
    "tls": over_tls,
    "shm": over_shm,
    "daemons": over_daemons,
    "hosts": over_hosts,
    "hosts by tls": over_hosts_by_tls,
}


@pytest.fixture(
    params=[
        "memory",
        "tls",
        "shm",
        pytest.param("daemons", marks=pytest.mark.p2p),
        pytest.param("hosts", marks=pytest.mark.p2p),
        pytest.param("hosts by tls", marks=pytest.mark.p2p),
    ]
)
def way(request: pytest.FixtureRequest) -> Way:
    """How the lanes run."""
    return WAYS[request.param]


class Vector:
    """A Sink that puts chunks where they belong."""

    def __init__(self, num_values: int) -> None:
        self._box = Box()
        self.values = np.zeros(num_values, np.float32)
        self.num_chunks = 0
        self.error: ZoonetError | None = None

    def admit(self, peer_id: str, header: bytes, num_bytes: int) -> memoryview:
        start = int(header)
        place = memoryview(self.values).cast("B")[start : start + num_bytes]
        if len(place) != num_bytes:
            raise ProtocolViolation(peer_id, "a chunk out of range")
        return place

    def arrived(self, peer_id: str, header: bytes) -> None:
        self.num_chunks += 1
        self._box.notify()

    def ended(self, peer_id: str, error: ZoonetError) -> None:
        self.error = error
        self._box.notify()

    async def until(self, is_true: Callable[[], bool]) -> None:
        await self._box.until(is_true)


def ignore(lane: Lane, error: ZoonetError) -> None:
    """For lanes whose end is no part of the story."""


def test_a_vector_arrives_with_equal_bits(way: Way) -> None:
    values = np.frombuffer(random.Random(1).randbytes(4 * NUM_VALUES), np.float32)

    async def story(pair: Pair) -> None:
        sink = Vector(NUM_VALUES)
        await pair.right.serve("vector", sink)
        memory = pair.left.allocate(4 * NUM_VALUES)
        memory[:] = memoryview(values).cast("B")
        lane = await pair.left.open(pair.right.peer_id, "vector", ignore)
        starts = range(0, 4 * NUM_VALUES, CHUNK_BYTES)
        for start in starts:
            lane.post(b"%d" % start, memory[start : start + CHUNK_BYTES])
        await sink.until(lambda: sink.num_chunks == len(starts))
        assert digest(sink.values) == digest(values)
        await lane.close()

    way(story)


def digest(values: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(memoryview(values).cast("B")).digest()


def test_a_lane_tells_its_end_to_both_sides_once(way: Way) -> None:
    async def story(pair: Pair) -> None:
        sink, ends, ended = Vector(10), [], asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_end(lane: Lane, error: ZoonetError) -> None:
            ends.append((lane.peer_id, error))
            loop.call_soon_threadsafe(ended.set)

        await pair.right.serve("vector", sink)
        lane = await pair.left.open(pair.right.peer_id, "vector", on_end)
        lane.post(b"1000", b"payload out of range")
        await sink.until(lambda: sink.error is not None)
        assert isinstance(sink.error, ProtocolViolation)
        assert sink.error.peer == pair.left.peer_id
        if not isinstance(pair.left, StreamLanes):
            await ended.wait()
            assert [peer_id for peer_id, _ in ends] == [pair.right.peer_id]
        await lane.close()

    way(story)


def test_nobody_serves_what_was_not_served(way: Way) -> None:
    async def story(pair: Pair) -> None:
        with pytest.raises(PeerUnreachable):
            await pair.left.open(pair.right.peer_id, "nothing", ignore)

    way(story)


def test_a_lane_opened_ahead_is_none_over_a_stream(way: Way) -> None:
    async def story(pair: Pair) -> None:
        sink = Vector(10)
        await pair.right.serve("vector", sink)
        lane = await pair.left.open_ahead(pair.right.peer_id, "vector", ignore)
        assert (lane is None) == isinstance(pair.left, StreamLanes)
        if lane is not None:
            lane.post(b"0", bytes(40))
            await sink.until(lambda: sink.num_chunks == 1)
            await lane.close()

    way(story)


def test_only_who_is_heard_is_not_silent(way: Way) -> None:
    async def story(pair: Pair) -> None:
        sink = Vector(10)
        await pair.right.serve("vector", sink)
        assert pair.right.silent_s(pair.left.peer_id) == float("inf")
        lane = await pair.left.open(pair.right.peer_id, "vector", ignore)
        lane.post(b"0", bytes(40))
        await sink.until(lambda: sink.num_chunks == 1)
        await lane.close()
        assert pair.right.silent_s(pair.left.peer_id) < 10

    way(story)


@pytest.mark.p2p
def test_hosts_of_one_machine_share_memory() -> None:
    async def story(pair: Pair) -> None:
        assert isinstance(pair.left, HostLanes)
        sink = Vector(10)
        await pair.right.serve("vector", sink)
        lane = await pair.left.open(pair.right.peer_id, "vector", ignore)
        assert lane.path == "shm"
        await lane.close()

    over_hosts(story)


@pytest.mark.p2p
def test_hosts_of_two_machines_connect_directly() -> None:
    async def story(pair: Pair) -> None:
        sink = Vector(10)
        await pair.right.serve("vector", sink)
        lane = await pair.left.open(pair.right.peer_id, "vector", ignore)
        assert lane.path == "direct"
        await lane.close()

    over_hosts_by_tls(story)
