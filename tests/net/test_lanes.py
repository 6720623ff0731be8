"""Lanes over every path: what arrives, how they end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from dataclasses import replace

import pytest

from tests.contracts.networks import identity_of
from tests.net.lane_peers import (
    DIRECT,
    SHM,
    STREAMS,
    Box,
    LanePeer,
    lane_pair,
    lane_peer,
    routes_nearby,
    run,
)
from zoonet.crypto import PeerId
from zoonet.errors import PeerTimeout, PeerUnreachable, ProtocolViolation, StreamClosed
from zoonet.net.lanes import HostLanes, LanesConfig
from zoonet.net.lanes.certificates import LIFETIME_S
from zoonet.net.lanes.memory import SharedMemory
from zoonet.net.lanes.outgoing import OutgoingLane
from zoonet.net.lanes.station import Station
from zoonet.testing import MemorySwarm
from zoonet.transport.lanes import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES

PATHS = pytest.mark.parametrize(
    ("config", "path"), [(SHM, "shm"), (DIRECT, "direct"), (STREAMS, "stream")]
)
FAST = pytest.mark.parametrize("config", [SHM, DIRECT], ids=["shm", "direct"])
STRIPED = replace(DIRECT, long_rtt_s=0.0)


def payload_of(number: int, num_bytes: int) -> bytes:
    return random.Random(number).randbytes(num_bytes)


@PATHS
def test_messages_of_every_size_arrive_as_they_were_posted(config: LanesConfig, path: str) -> None:
    sizes = (0, 1, 8191, 8192, 8193, 100_000, 1 << 20, MAX_PAYLOAD_BYTES)
    sent = {b"%d" % number: payload_of(number, size) for number, size in enumerate(sizes)}

    async def story() -> None:
        async with lane_pair(config) as (left, right):
            lane = await left.open(right)
            assert (lane.path, lane.peer_id) == (path, right.peer_id)
            for header, payload in sent.items():
                lane.post(header, payload)
            assert await right.inbox.until_arrived(len(sent)) == sent
            assert {peer_id for peer_id, _, _ in right.inbox.messages} == {left.peer_id}
            await lane.close()
            assert lane.unsent_bytes == 0
            assert left.outbox.ends == []

    run(story())


@PATHS
def test_allocated_memory_is_sent_like_any_other(config: LanesConfig, path: str) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            lane = await left.open(right)
            memory = left.lanes.allocate(3_000_000)
            assert bytes(memory[:10]) == bytes(10)
            memory[:] = payload_of(1, 3_000_000)
            for start in range(0, 3_000_000, 500_000):
                lane.post(b"%d" % start, memory[start : start + 500_000])
            arrived = await right.inbox.until_arrived(6)
            whole = b"".join(arrived[b"%d" % start] for start in range(0, 3_000_000, 500_000))
            assert whole == bytes(memory)
            await lane.close()

    run(story())


@FAST
def test_fast_lanes_run_in_threads_of_their_own(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            lane = await left.open(right)
            lane.post(b"a", b"payload")
            await right.inbox.until_arrived(1)
            assert right.inbox.threads == {"lane-in"}
            await lane.close()

    run(story())


def test_a_peer_that_cannot_be_dialled_is_asked_to_dial_back() -> None:
    async def story() -> None:
        async with lane_pair(DIRECT, replace(DIRECT, hosts=())) as (left, right):
            lane = await left.open(right)
            assert lane.path == "direct"
            lane.post(b"a", payload_of(1, 300_000))
            assert await right.inbox.until_arrived(1) == {b"a": payload_of(1, 300_000)}
            await lane.close()
            assert isinstance(await right.inbox.until_ended(), StreamClosed)

    run(story())


@pytest.mark.parametrize("hosts", [("127.0.0.1",), ()], ids=["dialled", "dialled back"])
def test_a_long_way_is_travelled_over_several_connections(hosts: tuple[str, ...]) -> None:
    sent = {b"%d" % number: payload_of(number, 70_000) for number in range(64)}

    async def story() -> None:
        async with lane_pair(STRIPED, replace(STRIPED, hosts=hosts)) as (left, right):
            lane = await left.open(right)
            assert isinstance(lane, OutgoingLane)
            while lane.num_connections < STRIPED.num_stripes:
                await asyncio.sleep(0)  # they come one after the other, in the background
            for header, payload in sent.items():
                lane.post(header, payload)
            assert await right.inbox.until_arrived(len(sent)) == sent
            await lane.close()
            await right.inbox.until_ended()
            assert len(right.inbox.ends) == 1

    run(story())


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_lanes_run_over_ipv6_too() -> None:
    async def story() -> None:
        async with lane_pair(replace(DIRECT, hosts=("::1",))) as (left, right):
            lane = await left.open(right)
            assert lane.path == "direct"
            lane.post(b"a", b"payload")
            assert await right.inbox.until_arrived(1) == {b"a": b"payload"}
            await lane.close()

    run(story())


def test_peers_that_can_neither_dial_nor_be_dialled_use_a_stream() -> None:
    async def story() -> None:
        deaf = replace(DIRECT, hosts=())
        async with lane_pair(deaf, deaf) as (left, right):
            lane = await left.open(right)
            assert lane.path == "stream"
            lane.post(b"a", b"payload")
            assert await right.inbox.until_arrived(1) == {b"a": b"payload"}
            await lane.close()

    run(story())


def test_a_later_lane_takes_the_better_path_that_has_appeared() -> None:
    async def story() -> None:
        swarm, patient = MemorySwarm(), replace(DIRECT, hosts=(), retry_direct_after_s=0.0)
        async with lane_peer(swarm, "left", patient) as left:
            async with lane_peer(swarm, "right", replace(DIRECT, hosts=())) as right:
                assert (await left.open(right)).path == "stream"
            async with lane_peer(swarm, "right", DIRECT) as right:
                while (lane := await left.open(right)).path == "stream":
                    await lane.close()
                assert lane.path == "direct"
                lane.post(b"a", b"payload")
                assert await right.inbox.until_arrived(1) == {b"a": b"payload"}

    run(story())


def test_a_path_that_failed_is_not_tried_again_at_once() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        async with lane_peer(swarm, "left", replace(DIRECT, hosts=())) as left:
            async with lane_peer(swarm, "right", replace(DIRECT, hosts=())) as right:
                assert (await left.open(right)).path == "stream"
            async with lane_peer(swarm, "right", DIRECT) as right:
                assert (await left.open(right)).path == "stream"

    run(story())


@PATHS
def test_a_channel_that_nobody_serves_is_refused(config: LanesConfig, path: str) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            with pytest.raises(PeerUnreachable, match=right.peer_id[-8:]):
                await left.open(right, "unheard of")
            with pytest.raises(PeerUnreachable):
                await left.open(left)

    run(story())


@FAST
def test_messages_beyond_the_limits_are_not_posted(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            lane = await left.open(right)
            with pytest.raises(ValueError, match="too large"):
                lane.post(b"h" * (MAX_HEADER_BYTES + 1), b"")
            with pytest.raises(ValueError, match="too large"):
                lane.post(b"h", bytes(MAX_PAYLOAD_BYTES + 1))
            lane.post(b"h" * MAX_HEADER_BYTES, b"fits")
            assert await right.inbox.until_arrived(1) == {b"h" * MAX_HEADER_BYTES: b"fits"}
            await lane.close()

    run(story())


def test_a_lane_through_other_peers_says_so() -> None:
    async def over_a_relay(peer_id: PeerId) -> tuple[str, ...]:
        return (f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id}/p2p-circuit",)

    async def story() -> None:
        swarm = MemorySwarm()
        async with lane_peer(swarm, "right", STREAMS) as right:
            transport, _ = swarm.peer(identity_of("left"))
            lanes = HostLanes(transport, STREAMS, over_a_relay)
            lane = await lanes.open(right.peer_id, "bulk", right.inbox.on_end)
            assert lane.path == "relayed"
            for number in range(16):
                lane.post(b"%d" % number, bytes(100_000))
            await right.inbox.until_arrived(16)
            await lane.close()
            assert lanes.links()[right.peer_id].path == "relayed"
            assert right.lanes.links()[transport.peer_id].down_bytes_per_s > 0

    run(story())


# The end of a lane.


@FAST
def test_a_peer_that_goes_away_is_noticed_by_an_idle_lane(config: LanesConfig) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        async with lane_peer(swarm, "left", config) as left:
            async with lane_peer(swarm, "right", config) as right:
                lane = await left.open(right)
                lane.post(b"a", b"payload")
                await right.inbox.until_arrived(1)
            error = await left.outbox.until_ended()
            assert isinstance(error, StreamClosed)
            assert right.peer_id[-8:] in str(error)
            lane.post(b"b", b"into the void")
            assert lane.unsent_bytes == 0
            await lane.close()
            assert len(left.outbox.ends) == 1
            assert right.inbox.ends == []  # it ended its lanes itself

    run(story())


@FAST
def test_the_receiver_is_told_once_that_the_sender_has_gone(config: LanesConfig) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        async with lane_peer(swarm, "right", config) as right:
            async with lane_peer(swarm, "left", config) as left:
                await left.open(right)
            error = await right.inbox.until_ended()
            assert isinstance(error, StreamClosed)
            assert [peer_id for peer_id, _ in right.inbox.ends] == [left.peer_id]

    run(story())


@FAST
def test_what_was_posted_leaves_before_a_lane_closes(config: LanesConfig) -> None:
    sent = {b"%d" % number: payload_of(number, 200_000) for number in range(20)}

    async def story() -> None:
        async with lane_pair(config) as (left, right):
            lane = await left.open(right)
            for header, payload in sent.items():
                lane.post(header, payload)
            await lane.close()
            await lane.close()
            assert await right.inbox.until_arrived(20) == sent
            assert left.outbox.ends == []

    run(story())


@FAST
def test_dropped_messages_do_not_leave(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            right.inbox.waits_for = threading.Event()  # nothing is taken in until then
            lane = await left.open(right)
            memory = left.lanes.allocate(1 << 20)
            for number in range(100):
                lane.post(b"%d" % number, memory)
            lane.drop()
            assert lane.unsent_bytes < 50 << 20
            lane.post(b"last", b"payload")
            right.inbox.waits_for.set()
            last = (left.peer_id, b"last", b"payload")
            await right.inbox.until(lambda: last in right.inbox.messages)
            assert len(right.inbox.messages) < 50
            await lane.close()

    run(story())


@FAST
def test_a_channel_that_is_served_no_more_ends_its_lanes(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            await left.open(right)
            await right.lanes.serve("other", Box())
            other = await left.open(right, "other")
            await right.lanes.unserve("bulk")
            assert isinstance(await left.outbox.until_ended(), StreamClosed)
            with pytest.raises(PeerUnreachable):
                await left.open(right)
            other.post(b"a", b"still there")
            await other.close()
            assert len(left.outbox.ends) == 1

    run(story())


@FAST
def test_a_message_that_the_sink_refuses_ends_its_lane_alone(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            right.inbox.refuses = b"bad"
            lane, other = await left.open(right), await left.open(right)
            lane.post(b"bad", b"payload")
            error = await right.inbox.until_ended()
            assert isinstance(error, ProtocolViolation)
            assert error.peer == left.peer_id
            await left.outbox.until_ended()
            other.post(b"good", b"payload")
            assert await right.inbox.until_arrived(1) == {b"good": b"payload"}
            await other.close()

    run(story())


@FAST
def test_a_message_that_nobody_waits_for_ends_its_lane(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(replace(config, patience_s=0.05)) as (left, right):
            right.inbox.waits_for = threading.Event()
            lane = await left.open(right)
            lane.post(b"a", b"payload")
            assert isinstance(await right.inbox.until_ended(), ProtocolViolation)

    run(story())


@FAST
def test_a_receiver_that_takes_no_bytes_ends_the_lane(config: LanesConfig) -> None:
    async def story() -> None:
        impatient = replace(config, stall_timeout_s=0.2)
        async with lane_pair(impatient, replace(config, patience_s=30.0)) as (left, right):
            right.inbox.waits_for = threading.Event()
            lane = await left.open(right)
            memory = left.lanes.allocate(MAX_PAYLOAD_BYTES)
            for number in range(20):
                lane.post(b"%d" % number, memory)
            assert isinstance(await left.outbox.until_ended(), PeerTimeout)
            assert lane.unsent_bytes == 0
            right.inbox.waits_for.set()

    run(story())


async def break_in_full_flight(left: LanePeer, right: LanePeer, num_ends: int) -> None:
    lane = await left.open(right)
    assert isinstance(lane, OutgoingLane)
    memory = left.lanes.allocate(1 << 20)
    for message in range(50):
        lane.post(b"%d %d" % (num_ends, message), memory)
    await right.inbox.until_arrived(len(right.inbox.messages) + 1)
    lane._hands[0].pipe.connection.abort()
    await left.outbox.until(lambda: len(left.outbox.ends) >= num_ends)
    assert lane.unsent_bytes == 0
    await right.inbox.until(lambda: len(right.inbox.ends) >= num_ends)
    right.inbox.messages.clear()


@FAST
def test_a_lane_that_breaks_in_full_flight_is_told_once_to_each_side(config: LanesConfig) -> None:
    async def story() -> None:
        striped = replace(config, long_rtt_s=0.0)
        async with lane_pair(striped) as (left, right):
            for number in range(1, 11):
                await break_in_full_flight(left, right, number)
            assert (len(left.outbox.ends), len(right.inbox.ends)) == (10, 10)

    run(story())


# What is left of them.


async def open_and_close(left: LanePeer, right: LanePeer) -> None:
    lane = await left.open(right)
    memory = left.lanes.allocate(100_000)
    num_messages = len(right.inbox.messages)
    lane.post(b"a", memory)
    await right.inbox.until_arrived(num_messages + 1)
    num_ends = len(right.inbox.ends)
    await lane.close()
    await right.inbox.until(lambda: len(right.inbox.ends) > num_ends)


def count() -> tuple[int, int]:
    """Open descriptors of this process, and running threads of its lanes."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]
    return len(os.listdir("/proc/self/fd")), len(threads)


async def settles_at(num_fds: int, num_threads: int) -> None:
    """Wait until there are no more of both than that; a thread ends a moment after its lane."""
    while count()[0] > num_fds or count()[1] > num_threads:
        await asyncio.sleep(0.01)


@FAST
def test_lanes_that_close_leave_neither_descriptors_nor_threads(config: LanesConfig) -> None:
    async def story() -> None:
        async with lane_pair(config) as (left, right):
            await open_and_close(left, right)
            num_fds, num_threads = count()
            for _ in range(100):
                await open_and_close(left, right)
                await open_and_close(right, left)
            await settles_at(num_fds, num_threads)

    run(story())


def test_nothing_is_left_after_the_lanes_of_a_host_close() -> None:
    async def story() -> None:
        async with lane_pair(SHM):
            pass  # what asyncio itself keeps is there now
        before = count()
        for config in (SHM, STRIPED):
            async with lane_pair(config) as (left, right):
                for _ in range(3):
                    await left.open(right)
        await settles_at(*before)

    run(story())


def test_memory_that_is_needed_no_more_is_given_back() -> None:
    memory = SharedMemory(is_shared=True)
    before = count()[0]
    views = [memory.allocate(1 << 20) for _ in range(4)]
    found = memory.find(views[2][1000:2000])
    assert found is not None
    segment, offset = found
    assert (segment.num_bytes, offset) == (1 << 20, 1000)
    assert memory.find(memoryview(bytes(100))) is None
    assert len(memory.numbers()) == 4
    del views, found
    assert memory.numbers() == set()
    assert memory.find(memoryview(bytes(100))) is None
    assert count()[0] == before


# What is known of a link.


def test_traffic_tells_how_fast_a_link_is() -> None:
    async def story() -> None:
        async with lane_pair(DIRECT) as (left, right):
            lane = await left.open(right)
            memory = left.lanes.allocate(1 << 20)
            num_sent = 0
            while not (
                left.lanes.links()[right.peer_id].up_bytes_per_s
                and (mirrored := right.lanes.links()[left.peer_id]).down_bytes_per_s
            ):
                lane.post(b"%d" % num_sent, memory)
                num_sent += 1
                await right.inbox.until_arrived(num_sent)
            await lane.close()
            seen = left.lanes.links()[right.peer_id]
            assert seen.path == "direct"
            assert 0 < seen.rtt_s < 0.1
            assert seen.up_bytes_per_s > 1e6
            assert seen.down_bytes_per_s == 0
            assert mirrored.down_bytes_per_s > 1e6
            assert right.lanes.silent_s(left.peer_id) < 10

    run(story())


def test_certificates_are_renewed_before_they_expire() -> None:
    class Moving:
        time = 1_800_000_000.0

        def now(self) -> float:
            return self.time

    clock = Moving()
    transport, _ = MemorySwarm(clock=clock).peer(identity_of("left"))
    station = Station(transport, STREAMS, routes_nearby, clock)
    first = station.credentials()
    clock.time += LIFETIME_S / 2 - 1
    assert station.credentials() is first
    clock.time += 1
    assert station.credentials().certificate != first.certificate
