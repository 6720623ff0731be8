"""Peers that die, fall silent, leave, or do something else: the others learn it, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from tests.contracts.networks import identity_of
from tests.distributed.worlds import MemoryWorld, names, peer_ids
from zoonet.crypto import PeerId, short
from zoonet.distributed import Exchange, ExchangeConfig, Group
from zoonet.distributed.wire import CREDIT_BYTES, EARLY_BYTES
from zoonet.errors import ConfigError, GroupFailed, PeerTimeout, ProtocolViolation, StreamClosed
from zoonet.testing import FaultPlan, MemorySwarm, run
from zoonet.transport import LocalStream, StreamLane, StreamLanes

torch.set_num_threads(1)


def name_of(rank: int) -> str:
    return f"rank {rank} (peer {short(peer_ids(4)[rank])})"


def test_a_death_fails_what_is_under_way_and_everything_later_by_name() -> None:
    world = MemoryWorld()

    async def story(group: Group) -> float:
        if group.rank == 2:
            await world.swarm.kill(peer_ids(3)[2])
            return 0.0
        began = asyncio.get_running_loop().time()
        with pytest.raises(GroupFailed) as caught:
            await group.all_reduce_(torch.ones(100_000))
        assert caught.value.missing == {peer_ids(3)[2]}
        assert f"all_reduce (number 0) of group 'all': {name_of(2)} is lost" in str(caught.value)
        with pytest.raises(GroupFailed, match=r"barrier \(number 1\)") as caught:
            await group.barrier()
        assert name_of(2) in str(caught.value)
        with pytest.raises(GroupFailed, match=r"send to rank"):
            await group.send(torch.ones(1), 1 - group.rank)
        return asyncio.get_running_loop().time() - began

    assert max(world.run(3, story)) < 2


def test_a_frozen_peer_is_given_up_after_its_silence_and_not_before() -> None:
    config = ExchangeConfig(run="test", silence_s=10.0, beat_s=1.0)
    world = MemoryWorld(config)

    async def story(group: Group) -> float:
        clock = asyncio.get_running_loop()
        await group.barrier()
        if group.rank == 1:
            world.faults.extra_delay_s[peer_ids(2)[1]] = 1e6
            await asyncio.sleep(60)
            return 0.0
        await asyncio.sleep(6)
        assert group.failure is None
        with pytest.raises(GroupFailed, match=r"silent for 1[01] s"):
            await group.barrier()
        return clock.time()

    assert 10 < world.run(2, story)[0] < 15


def test_a_peer_that_never_calls_is_named_when_the_time_is_over() -> None:
    config = ExchangeConfig(run="test", operation_timeout_s=40.0)

    async def story(group: Group) -> None:
        if group.rank == 1:
            await asyncio.sleep(60)
            with pytest.raises(GroupFailed, match="gave up: all_reduce"):
                await group.all_reduce_(torch.ones(10))
            return
        with pytest.raises(GroupFailed) as caught:
            await group.all_reduce_(torch.ones(10))
        assert f"40 s passed, still waiting for {name_of(1)}" in str(caught.value)

    MemoryWorld(config).run(3, story)


def test_who_leaves_in_good_order_fails_only_those_who_still_need_it() -> None:
    async def story(group: Group) -> None:
        if group.rank == 0:
            await group.send(torch.ones(5), 1)
            return  # and leaves
        if group.rank == 1:
            await group.receive(torch.empty(5), 0)
        await asyncio.sleep(5)
        other = 3 - group.rank
        sent, received = torch.full((50_000,), group.rank), torch.empty(50_000, dtype=torch.int64)
        await asyncio.gather(group.send(sent, other), group.receive(received, other))
        assert received[0] == other
        with pytest.raises(GroupFailed, match=r"rank 0 \(peer \w+\) has left the run"):
            await group.barrier()

    meet(3, story)


def test_different_collectives_at_the_same_time_are_told_apart() -> None:
    async def story(group: Group) -> None:
        mine = torch.ones(100_000)
        work = group.broadcast_(mine, 1) if group.rank else group.all_reduce_(mine)
        with pytest.raises(GroupFailed) as caught:
            await work
        message = str(caught.value)
        assert "all_reduce" in message
        assert "broadcast" in message

    MemoryWorld().run(2, story)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (torch.ones(10), torch.ones(11)),
        (torch.ones(10), torch.ones(10).half()),
        (torch.ones(2, 5), torch.ones(5, 2)),
        (torch.ones(10), torch.ones(0)),
        (torch.ones(0), torch.ones(10)),
    ],
    ids=["size", "dtype", "shape", "receive nothing", "send nothing"],
)
@pytest.mark.parametrize("late", [0, 1])
def test_a_tensor_of_another_size_dtype_or_shape_lands_nowhere(
    sent: torch.Tensor, expected: torch.Tensor, late: int
) -> None:
    async def send(group: Group) -> None:
        await group.send(sent, 1)
        await group.barrier()  # a send of nothing is over at once

    async def story(group: Group) -> str:
        await asyncio.sleep(group.rank == late)
        place = expected.clone()
        work = group.receive(place, 0) if group.rank else send(group)
        with pytest.raises(GroupFailed) as caught:
            await work
        assert torch.equal(place, expected)
        return str(caught.value)

    told = "; ".join(MemoryWorld().run(2, story))
    for tensor in (sent, expected):
        dtype = str(tensor.dtype).removeprefix("torch.")
        assert f"send/recv of shape {tuple(tensor.shape)}, {dtype}" in told


def test_a_cancelled_operation_ends_the_group_for_all() -> None:
    async def story(group: Group) -> None:
        if group.rank == 0:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await group.barrier()
        else:
            await asyncio.sleep(2)
        with pytest.raises(GroupFailed, match=r"barrier \(number 0\) was cancelled"):
            await group.barrier()

    MemoryWorld().run(2, story)


def test_beyond_its_credit_what_is_sent_waits_at_the_sender_for_its_receive() -> None:
    num_sends, size = 2 * CREDIT_BYTES // EARLY_BYTES, EARLY_BYTES // 4

    async def story(group: Group) -> None:
        if group.rank == 0:
            values = [torch.full((size,), float(number)) for number in range(num_sends)]
            works = [asyncio.create_task(group.send(each, 1)) for each in values]
            done, waiting = await asyncio.wait(works, timeout=5)
            assert len(done) == len(waiting) == num_sends // 2
            await group.send(torch.ones(3), 1, tag=7)  # no lane is blocked by the others
            await asyncio.wait(works)
            await group.send(values[0], 1)  # the credit has been given back
            return
        await asyncio.sleep(8)
        await group.receive(torch.empty(3), 0, tag=7)
        place = torch.empty(size)
        for number in range(num_sends):
            await group.receive(place, 0)
            assert place[0] == place[-1] == number
        await asyncio.sleep(8)
        await group.receive(place, 0)

    MemoryWorld().run(2, story)


@pytest.mark.parametrize(("size", "round_trips"), [(1000, 0), (EARLY_BYTES, 1)])
def test_a_small_tensor_that_was_sent_before_it_is_asked_for_is_there_at_once(
    size: int, round_trips: int
) -> None:
    world = MemoryWorld(faults=FaultPlan(latency_s=1.0))

    async def story(group: Group) -> float:
        if group.rank == 0:
            await group.send(torch.ones(size), 1)
            return 0.0
        await asyncio.sleep(10)
        began = asyncio.get_running_loop().time()
        await group.receive(torch.empty(size), 0)
        return asyncio.get_running_loop().time() - began

    took_s = world.run(2, story)[1]
    assert 2.0 * round_trips <= took_s < 2.0 * round_trips + 4.0 * (round_trips > 0) + 0.1


def test_a_receive_from_anyone_takes_who_is_first() -> None:
    async def story(group: Group) -> list[int]:
        if group.rank:
            await asyncio.sleep(group.rank)
            await group.send(torch.full((4,), float(group.rank)), 0, tag=5)
            return []
        sources = []
        for _ in range(3):
            place = torch.empty(4)
            sources.append(await group.receive_any(place, tag=5))
            assert place[0] == sources[-1]
        return sources

    assert MemoryWorld().run(4, story)[0] == [1, 2, 3]


def test_a_receive_from_anyone_ends_when_nobody_sends_in_time() -> None:
    config = ExchangeConfig(run="test", operation_timeout_s=30.0)

    async def story(group: Group) -> None:
        with pytest.raises(GroupFailed, match=r"recv from any rank .* 30 s passed|gave up"):
            await group.receive_any(torch.empty(4))

    MemoryWorld(config).run(2, story)


def meet(num_peers: int, story: Callable[[Group], Awaitable[None]]) -> None:
    """As `MemoryWorld.run`, but each leaves when its own story ends."""

    async def main() -> None:
        swarm = MemorySwarm(faults=FaultPlan(latency_s=0.001))
        transports = [swarm.peer(identity_of(name))[0] for name in names(num_peers)]

        async def one(rank: int) -> None:
            lanes, peers = StreamLanes(transports[rank]), peer_ids(num_peers)
            async with Exchange.open(lanes, peers) as exchange:
                await story(Group(exchange, "all", peers))

        async with asyncio.TaskGroup() as tasks:
            for rank in range(num_peers):
                tasks.create_task(one(rank))
        for transport in transports:
            await transport.close()

    run(main())


def test_peers_that_do_not_come_are_named() -> None:
    async def main() -> None:
        transport, _ = MemorySwarm().peer(identity_of("rank 0"))
        config = ExchangeConfig(run="lonely", join_timeout_s=30)
        with pytest.raises(PeerTimeout) as caught:
            async with Exchange.open(StreamLanes(transport), peer_ids(3), config):
                pass
        assert "not all peers of the run 'lonely' came in 30 s" in str(caught.value)
        assert f"missing: {name_of(1)}, not reached; {name_of(2)}, not" in str(caught.value)

    run(main())


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 0.3, 0.7, 2.0])
def test_a_peer_may_be_started_again_at_any_time_before_all_have_met(pause_s: float) -> None:
    async def main() -> None:
        swarm = MemorySwarm(faults=FaultPlan(latency_s=0.001))
        peers = peer_ids(3)

        async def one(rank: int) -> None:
            lanes = StreamLanes(swarm.peer(identity_of(f"rank {rank}"))[0])
            async with Exchange.open(lanes, peers) as exchange:
                group = Group(exchange, "all", peers)
                await group.barrier()
                await asyncio.sleep(3)
                await group.barrier()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one(0))
            first = asyncio.create_task(one(1))
            await asyncio.sleep(1)
            await swarm.kill(peers[1])
            first.cancel()
            await asyncio.wait({first})
            await asyncio.sleep(pause_s)
            tasks.create_task(one(1))
            await asyncio.sleep(pause_s)
            tasks.create_task(one(2))

    run(main())


def test_the_end_of_a_lane_that_has_been_replaced_is_no_loss() -> None:
    async def story(group: Group) -> None:
        exchange, other = group._exchange, peer_ids(2)[1 - group.rank]
        replaced = StreamLane(LocalStream(other), exchange._on_lane_end)
        exchange._on_lane_end(replaced, StreamClosed("it was opened again meanwhile"))
        await asyncio.sleep(2)
        await group.barrier()
        exchange._on_lane_end(exchange._outgoing[other], StreamClosed("the very one"))
        with pytest.raises(GroupFailed, match=r"the very one|gave up"):
            await group.receive(torch.empty(1), 1 - group.rank)
        await replaced.close()

    MemoryWorld().run(2, story)


def test_a_list_of_peers_that_cannot_work_is_refused() -> None:
    async def main() -> None:
        transport, _ = MemorySwarm().peer(identity_of("rank 0"))
        lanes, peers = StreamLanes(transport), peer_ids(3)
        for wrong, message in (
            (peers[1:], "is not in the list of peers"),
            ([*peers, peers[1]], "twice"),
        ):
            with pytest.raises(ConfigError, match=message):
                async with Exchange.open(lanes, wrong):
                    pass

    run(main())


def test_another_order_of_the_list_is_noticed_when_they_meet() -> None:
    async def main() -> None:
        swarm = MemorySwarm()
        peers = peer_ids(2)

        async def one(rank: int, order: list[PeerId]) -> None:
            lanes = StreamLanes(swarm.peer(identity_of(f"rank {rank}"))[0])
            with pytest.raises((ProtocolViolation, PeerTimeout), match=r"another order|not all"):
                async with Exchange.open(lanes, order, ExchangeConfig(join_timeout_s=10)):
                    pass

        await asyncio.gather(one(0, list(peers)), one(1, list(reversed(peers))))

    run(main())


def test_groups_of_some_peers_do_not_mind_the_others() -> None:
    world = MemoryWorld()

    async def story(group: Group) -> None:
        exchange = group._exchange
        pair = [peer_ids(4)[rank] for rank in (1, 3)]
        if group.rank not in (1, 3):
            if group.rank == 0:
                await world.swarm.kill(peer_ids(4)[0])
            await asyncio.sleep(3)
            return
        await asyncio.sleep(2)
        small = Group(exchange, "pair", pair)
        mine = torch.full((30_000,), float(group.rank))
        await small.all_reduce_(mine)
        assert mine[0] == 4
        small.close()

    world.run(4, story)
