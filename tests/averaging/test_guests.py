"""Joiners train as soon as they have the state, and their work is part of that very round."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.averaging.makers import (
    NAMES,
    certified,
    empty_chain,
    grow,
    peer,
    plan_after,
    result_after,
    whole,
)
from tests.averaging.swarm import CountingReplica, Swarm, contributed_slots
from zoonet.averaging import Chain, RoundsConfig
from zoonet.averaging.messages import Round, Share
from zoonet.averaging.rules import check_plan, follows
from zoonet.errors import ProtocolViolation
from zoonet.ranges import count
from zoonet.testing import run

MEMBERS = ("ada", "bob", "cyd")
STEPS = 40  # four seconds


class Fetching(CountingReplica):
    """Takes a while to fetch the state."""

    fetch_s = 0.0

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        await asyncio.sleep(self.fetch_s)
        await super().adopt(state, digests, chunks)


async def joined_by_eve(
    *, fetch_s: float = 0.0, speed: float = 10.0, num_slots: int = 2000
) -> Swarm:
    swarm = Swarm(num_slots, RoundsConfig(inner_steps=STEPS, min_founders=3))
    for name in MEMBERS:
        await swarm.add(name)
    swarm.start()
    await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
    eve = await swarm.add("eve", slots_per_s=speed)
    eve.replica.__class__ = Fetching
    eve.replica.fetch_s = fetch_s
    swarm.start("eve")
    return swarm


def shares_of(chain: Chain, name: str) -> list[tuple[int, int]]:
    """Rounds that the peer contributed to, and how many slots."""
    return [
        (link.result.index, count(share.slots))
        for link in chain.certificates
        for share in link.result.contributions
        if share.peer == peer(name)
    ]


def assert_same_truth(swarm: Swarm, num_slots: int = 2000) -> Chain:
    peers = list(swarm.peers.values())
    assert len({one.chain.head for one in peers}) == 1
    assert len({one.replica.theta_P.tobytes() for one in peers}) == 1
    assert contributed_slots(peers[0].chain) == list(range(num_slots))
    return peers[0].chain


def round_of_joining(chain: Chain, name: str = "eve") -> int:
    (index,) = [one.result.index for one in chain.certificates if peer(name) in one.result.joiners]
    return index


@pytest.mark.parametrize(("fetch_s", "least"), [(0.0, 35), (2.0, 15)])
def test_a_joiner_contributes_what_it_could_train_to_the_round_it_joins(
    fetch_s: float, least: int
) -> None:
    async def main() -> Swarm:
        swarm = await joined_by_eve(fetch_s=fetch_s)
        await swarm.finish()
        return swarm

    chain = assert_same_truth(run(main()))
    index = round_of_joining(chain)
    (first, num_slots), (second, _), *_ = shares_of(chain, "eve")
    assert (first, second) == (index, index + 1)
    assert least <= num_slots <= STEPS
    result = chain.certificates[index].result
    assert peer("eve") not in result.members  # it has no vote in it
    assert peer("eve") not in [vote.peer for vote in chain.certificates[index].votes]


def test_a_joiner_that_takes_long_to_fetch_the_state_keeps_nobody_waiting() -> None:
    async def main() -> tuple[Swarm, float]:
        swarm = await joined_by_eve(fetch_s=100.0)
        chain = swarm.peers["ada"].chain
        await swarm.until(lambda: len(chain) == 3)
        began = asyncio.get_running_loop().time()
        await swarm.until(lambda: len(chain) == 4)
        took_s = asyncio.get_running_loop().time() - began
        assert peer("eve") in chain.last.joiners
        await swarm.kill("eve")
        await swarm.finish()
        return swarm, took_s

    swarm, took_s = run(main())
    assert_same_truth(swarm)
    assert took_s < STEPS / 10 + 0.5


@pytest.mark.parametrize("delay_s", [0.5, 2.0, 3.9, 4.1])
def test_a_joiner_that_dies_in_its_first_round_costs_nothing(delay_s: float) -> None:
    async def main() -> Swarm:
        swarm = await joined_by_eve()
        eve = swarm.peers["eve"]
        await swarm.until(lambda: eve.replica.trained != [])
        await asyncio.sleep(delay_s)
        await swarm.kill("eve")
        await swarm.finish()
        return swarm

    assert_same_truth(run(main()))


def test_a_slow_joiner_is_not_waited_for_and_brings_its_work_later() -> None:
    async def main() -> Swarm:
        swarm = await joined_by_eve(speed=0.7)
        await swarm.finish()
        return swarm

    chain = assert_same_truth(run(main()))
    index = round_of_joining(chain)
    assert shares_of(chain, "eve")[0][0] in (index, index + 1)


def test_towards_the_end_a_joiner_takes_no_work_from_members() -> None:
    async def main() -> Swarm:
        swarm = await joined_by_eve(num_slots=3 * STEPS * 3 + STEPS)
        await swarm.finish()
        return swarm

    chain = assert_same_truth(run(main()), 3 * STEPS * 3 + STEPS)
    index = round_of_joining(chain)
    assert peer("eve") not in [one.peer for one in chain.certificates[index].result.contributions]


def test_one_that_joins_and_never_hands_anything_over_costs_a_second_at_most() -> None:
    async def main() -> tuple[Swarm, list[float]]:
        swarm = await joined_by_eve()
        eve = swarm.peers["eve"]
        await swarm.until(lambda: eve.replica.trained != [])
        eve.replica.stop = lambda: None  # it is alive, and goes on
        eve.replica.speed = 1e-3
        began = asyncio.get_running_loop().time()
        index = len(swarm.peers["ada"].chain)
        await swarm.until(lambda: len(swarm.peers["ada"].chain) > index)
        took_s = asyncio.get_running_loop().time() - began
        await swarm.kill("eve")
        await swarm.finish()
        return swarm, [took_s]

    swarm, (took_s,) = run(main())
    assert_same_truth(swarm)
    assert took_s < STEPS / 10 + 1.5


# --- the rules ----------------------------------------------------------------------------------

CONFIG = RoundsConfig(inner_steps=4)


def guest_plan(chain: Chain, **fields: object) -> Round:
    names = NAMES[:3]
    slots = {name: ((100 + 4 * at, 104 + 4 * at),) for at, name in enumerate(names)}
    plan = plan_after(chain, slots, joiners=("eve",))
    guests = (whole(peer("eve"), ((200, 204),)),)
    return msgspec.structs.replace(plan, guests=guests, **fields)


def test_a_plan_may_lease_to_who_joins_and_to_nobody_else() -> None:
    chain = grow(empty_chain(), *NAMES[:3])
    plan = guest_plan(chain)
    check_plan(plan, chain.turns[0], chain, CONFIG)
    for slots, message in [
        (((100, 104),), "two shares"),
        (((0, 2),), "done"),
        (((200, 600),), "more than a member can train"),
    ]:
        greedy = msgspec.structs.replace(plan, guests=(whole(peer("eve"), slots),))
        with pytest.raises(ProtocolViolation, match=message):
            check_plan(greedy, chain.turns[0], chain, CONFIG)
    for name in ("dan", "ada"):
        stranger = msgspec.structs.replace(plan, guests=(whole(peer(name), ((200, 204),)),))
        with pytest.raises(ProtocolViolation, match="others than who joins"):
            check_plan(stranger, chain.turns[0], chain, CONFIG)


def test_a_guests_work_counts_and_its_vote_does_not() -> None:
    chain = grow(empty_chain(), *NAMES[:3])
    plan = guest_plan(chain)
    slots = {name: plan.slots_of(peer(name)) for name in (*NAMES[:3], "eve")}
    result = result_after(chain, NAMES[:3], joiners=("eve",), slots=slots)
    assert follows(result, plan)
    chain.check(certified(result, NAMES[:2]))
    with pytest.raises(ProtocolViolation, match="not those of members"):
        chain.check(certified(result, ("ada", "eve")))
    more = tuple(
        Share(one.peer, ((200, 205),)) if one.peer == peer("eve") else one
        for one in result.contributions
    )
    assert not follows(msgspec.structs.replace(result, contributions=more), plan)
