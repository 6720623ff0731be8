"""Those who are left agree on who that is, and go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import torch

from tests.distributed.worlds import MemoryWorld, peer_ids
from zoonet.crypto import PeerId, sha256
from zoonet.distributed import ExchangeConfig, Group
from zoonet.distributed.wire import GROUP_BYTES, Kind, Message
from zoonet.errors import GroupFailed, PeerTimeout

torch.set_num_threads(1)

NUM_PEERS = 5


async def work_until_failure(group: Group) -> None:
    with contextlib.suppress(GroupFailed):
        while True:
            await group.all_reduce_(torch.ones(20_000))


async def regrouped(group: Group, number: int) -> tuple[PeerId, ...]:
    """Form a group of those who are left, and use it."""
    members = await group._exchange.agree(30)
    smaller = Group(group._exchange, "again", members)
    mine = torch.ones(20_000)
    await smaller.all_reduce_(mine)
    assert mine[0] == len(members) == NUM_PEERS - number
    smaller.close()
    return members


@pytest.mark.parametrize("pause_s", [0.0, 0.003, 0.01, 3.0])
def test_two_deaths_at_any_distance_leave_one_group(pause_s: float) -> None:
    world = MemoryWorld()

    async def story(group: Group) -> tuple[PeerId, ...]:
        if group.rank == 1:
            await asyncio.sleep(1)
            await world.swarm.kill(peer_ids(NUM_PEERS)[1])
            await asyncio.sleep(pause_s)
            await world.swarm.kill(peer_ids(NUM_PEERS)[3])
            return ()
        await work_until_failure(group)
        if group.rank == 3:
            return ()
        while True:  # the second one may die before or after the first new group
            members = await group._exchange.agree(30)
            again = Group(group._exchange, "again", members)
            if len(members) == 3:
                mine = torch.ones(20_000)
                await again.all_reduce_(mine)
                assert mine[0] == 3
                return members
            await work_until_failure(again)

    told = world.run(NUM_PEERS, story)
    ids = peer_ids(NUM_PEERS)
    assert [told[rank] for rank in (0, 2, 4)] == [(ids[0], ids[2], ids[4])] * 3


def test_a_group_that_failed_without_a_loss_is_formed_again_by_all() -> None:
    async def story(group: Group) -> None:
        for _ in range(3):
            short = torch.ones(10 + (group.rank == 2))
            again = Group(group._exchange, "again", await group._exchange.agree(30))
            with pytest.raises(GroupFailed):
                await again.all_reduce_(short)
        await regrouped(group, 0)

    MemoryWorld().run(NUM_PEERS, story)


def test_a_peer_that_only_some_have_lost_is_given_up_by_all_and_learns_it() -> None:
    config = ExchangeConfig(run="test", silence_s=5.0)
    world = MemoryWorld(config)
    ids = peer_ids(NUM_PEERS)

    async def story(group: Group) -> tuple[PeerId, ...]:
        if group.rank == 0:
            await asyncio.sleep(1)
            group._exchange._lose(ids[2], PeerTimeout("silent on this link alone"))
        await work_until_failure(group)
        if group.rank == 2:
            with pytest.raises(GroupFailed, match="given this peer up"):
                await group._exchange.agree(30)
            return ()
        return await regrouped(group, 1)

    told = world.run(NUM_PEERS, story)
    assert told[0] == told[1] == told[3] == told[4] == tuple(ids[:2] + ids[3:])


def test_a_peer_that_says_too_much_of_others_is_given_up_itself() -> None:
    async def story(group: Group) -> None:
        exchange = group._exchange
        if group.rank == 0:
            for number in range(1, 100):
                exchange.say(Message(Kind.LOST, number=number, ranks=(number % 3,)))
            await asyncio.sleep(3)
            return
        await work_until_failure(group)
        assert "rank 0" in str(group.failure)
        assert "forms more groups than it takes part in" in str(group.failure)

    MemoryWorld().run(3, story)


def test_who_is_no_member_cannot_fail_a_group_before_it_begins() -> None:
    async def story(group: Group) -> None:
        exchange, members = group._exchange, peer_ids(3)[1:]
        name = sha256("\n".join(["0", "small", *members]).encode())[:GROUP_BYTES]
        if group.rank == 0:
            exchange.say(Message(Kind.FAIL, name, note="an intruder"))
            await asyncio.sleep(3)
            return
        await asyncio.sleep(1)
        small = Group(exchange, "small", members)
        assert small._id == name
        await small.barrier()
        await asyncio.sleep(3)

    MemoryWorld().run(3, story)


def test_a_peer_that_does_not_regroup_is_named() -> None:
    async def story(group: Group) -> None:
        if group.rank == 3:
            await asyncio.sleep(100)
            return
        with pytest.raises(PeerTimeout, match=r"after 30 s rank 3 \(peer \w+\) did not agree"):
            await group._exchange.agree(30)

    MemoryWorld().run(NUM_PEERS, story)
