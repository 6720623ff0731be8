"""Members go on training while a round is averaged, and no work is lost or counted twice by it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.averaging.makers import peer, ready
from tests.averaging.swarm import NUM_PARAMETERS, CountingReplica, Swarm, contributed_slots
from tests.averaging.test_leases import members
from zoonet.averaging import RoundsConfig
from zoonet.averaging.leases import lease
from zoonet.ranges import count, difference, overlaps
from zoonet.testing import run

NAMES = ("ada", "bob", "cyd", "dan")
SPEED = 10.0  # slots a second of each
FREE = ((0, 10_000),)


async def founded(num_slots: int = 400, *, ahead: float, names: tuple[str, ...] = NAMES) -> Swarm:
    config = RoundsConfig(inner_steps=10, min_founders=len(names), ahead=ahead)
    swarm = Swarm(num_slots, config)
    for name in names:
        await swarm.add(name, slots_per_s=SPEED)
    swarm.start()
    return swarm


def assert_every_slot_counts_once(swarm: Swarm, num_slots: int) -> None:
    """Everybody has the same bits, and they are what the slots come to, each taken once."""
    peers = list(swarm.peers.values())
    assert len({one.replica.theta_P.tobytes() for one in peers}) == 1
    assert contributed_slots(peers[0].chain) == list(range(num_slots))


async def slowed_down(ahead: float, *, one_way_s: float) -> float:
    """How many times as long training takes as it would without a network."""
    swarm = await founded(1000, ahead=ahead)
    swarm.memory.faults.latency_s = one_way_s
    await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
    loop = asyncio.get_running_loop()
    began, trained = loop.time(), sum(len(p.replica.trained) for p in swarm.peers.values())
    await swarm.until(lambda: len(swarm.peers["ada"].chain) == 8)
    num = sum(len(p.replica.trained) for p in swarm.peers.values()) - trained
    lasted_s = loop.time() - began
    await swarm.finish()
    assert_every_slot_counts_once(swarm, 1000)
    return lasted_s * len(NAMES) * SPEED / num


def test_over_long_lines_nobody_ever_waits_for_a_round() -> None:
    """A round over lines of 100 ms takes longer than the second that its steps take."""

    async def main() -> tuple[float, float]:
        return await slowed_down(0.0, one_way_s=0.1), await slowed_down(2.0, one_way_s=0.1)

    waiting, ahead = run(main())
    assert waiting > 1.5
    assert ahead < 1.05  # the twin starts a step anew in every round


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("delay_s", [0.1, 0.4, 0.9, 1.1])
def test_the_work_that_a_killed_peer_did_ahead_is_done_by_others(
    victim: str, delay_s: float
) -> None:
    async def main() -> Swarm:
        swarm = await founded(ahead=1.0)
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        await asyncio.sleep(delay_s)
        await swarm.kill(victim)
        await swarm.finish()
        return swarm

    assert_every_slot_counts_once(run(main()), 400)


def test_a_peer_that_was_left_out_brings_its_work_later() -> None:
    """Nobody else is given what it may have trained, so nothing of it is dropped."""

    async def main() -> tuple[Swarm, CountingReplica]:
        swarm = await founded(ahead=1.0)
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        bob = swarm.peers["bob"].replica
        bob.is_stuck = True
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 4)
        bob.is_stuck = False
        await swarm.finish()
        return swarm, bob

    swarm, bob = run(main())
    assert_every_slot_counts_once(swarm, 400)
    shares = [
        share
        for link in swarm.peers["ada"].chain.certificates
        for share in link.result.contributions
        if share.peer == peer("bob")
    ]
    assert sum(count(share.slots) for share in shares) >= len(bob.trained) - 10


def test_the_state_is_the_sum_of_what_the_chain_says() -> None:
    async def main() -> Swarm:
        swarm = await founded(ahead=2.0)
        await swarm.finish()
        return swarm

    swarm = run(main())
    expected_P = np.zeros(NUM_PARAMETERS)
    for link in swarm.peers["ada"].chain.certificates:
        shares = link.result.contributions
        total = sum(count(share.slots) for share in shares)
        for share in shares:
            for slot in (s for start, stop in share.slots for s in range(start, stop)):
                moved_P = np.random.default_rng(slot).random(NUM_PARAMETERS, np.float32)
                expected_P -= moved_P * (count(share.slots) / total)
    found_P = swarm.peers["ada"].replica.theta_P
    np.testing.assert_allclose(found_P, expected_P, rtol=1e-4)


def test_a_lease_holds_more_than_the_round_asks_for() -> None:
    found = lease(FREE, members(ada=ready(), bob=ready()), 10, ahead=1.5)
    assert [(one.steps, count(one.slots)) for one in found] == [(10, 25), (10, 25)]
    assert not overlaps(found[0].slots, found[1].slots)


def test_what_is_left_of_a_lease_is_leased_again() -> None:
    found = lease(FREE, members(ada=ready(leased=((500, 515),))), 10, ahead=1.5)
    assert not difference(((500, 515),), found[0].slots)
    assert (found[0].steps, count(found[0].slots)) == (10, 25)


def test_what_an_absent_peer_may_have_trained_is_given_away_last() -> None:
    known = {peer("dan"): ((0, 20),)}
    (found,) = lease(FREE, members(ada=ready()), 10, ahead=1.0, known=known)
    assert not overlaps(found.slots, ((0, 20),))
    (found,) = lease(((0, 25),), members(ada=ready()), 10, ahead=1.0, known=known)
    assert count(found.slots) == 20


def test_the_end_of_the_job_asks_for_no_more_than_there_is() -> None:
    found = lease(((90, 97),), members(ada=ready(), bob=ready()), 10, ahead=1.0)
    assert sum(count(one.slots) for one in found) == 7
    assert all(one.steps == count(one.slots) for one in found)
