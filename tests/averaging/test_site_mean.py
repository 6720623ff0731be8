"""Members of a site average within rounds; what fails there costs nobody anything else."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from tests.averaging.swarm import Swarm, contributed_slots
from zoonet.averaging import RoundsConfig
from zoonet.testing import run

PLACES = {"ada": "north", "bob": "north", "cyd": "north", "dan": "south", "eve": "south"}


async def founded(num_slots: int = 600, *, site_steps: int = 5, **speeds: float) -> Swarm:
    config = RoundsConfig(inner_steps=20, min_founders=len(PLACES), site_steps=site_steps)
    swarm = Swarm(num_slots, config)
    for name, place in PLACES.items():
        await swarm.add(name, place=place, slots_per_s=speeds.get(name, 10.0))
    swarm.start()
    return swarm


def assert_same_truth(swarm: Swarm, num_slots: int = 600) -> None:
    """Everybody has the same chain and the same bits, and each slot was averaged in once."""
    peers = list(swarm.peers.values())
    assert len({peer.chain.head for peer in peers}) == 1
    assert len({peer.replica.theta_P.tobytes() for peer in peers}) == 1
    assert contributed_slots(peers[0].chain) == list(range(num_slots))


def test_members_of_a_site_come_to_the_same_bits_within_a_round_and_others_do_not() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm)
    mixed = {name: swarm.peers[name].replica.mixed for name in PLACES}
    assert len(mixed["ada"]) == 3 * len(swarm.peers["ada"].chain)
    assert [steps for steps, _ in mixed["ada"][:6]] == [5, 10, 15, 5, 10, 15]
    for one, other in (("ada", "bob"), ("bob", "cyd"), ("dan", "eve")):
        assert all(
            np.array_equal(ours, theirs)
            for (_, ours), (_, theirs) in zip(mixed[one], mixed[other], strict=True)
        )
    assert not np.array_equal(mixed["ada"][0][1], mixed["dan"][0][1])


def test_means_within_sites_leave_what_rounds_add_up_to_as_it_is() -> None:
    async def main(site_steps: int) -> np.ndarray:
        swarm = await founded(site_steps=site_steps)
        await swarm.finish()
        return swarm.peers["ada"].replica.theta_P

    without_P = run(main(0))
    with_P = run(main(5))
    assert np.linalg.norm(without_P) > 1
    np.testing.assert_allclose(with_P, without_P, rtol=1e-5)


@pytest.mark.parametrize("victim", ["ada", "cyd", "dan"])
@pytest.mark.parametrize("delay_s", [0.45, 0.5, 1.0, 1.55])
def test_a_neighbour_that_dies_costs_its_contribution_and_nothing_else(
    victim: str, delay_s: float
) -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        await asyncio.sleep(delay_s)
        await swarm.kill(victim)
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm)
    left = "bob" if PLACES[victim] == "north" else "eve"
    if PLACES[victim] == "north":
        assert len(swarm.peers[left].replica.mixed) > 6  # those who are left still meet


def test_a_stuck_neighbour_is_waited_for_once_a_round_and_what_others_have_still_counts() -> None:
    async def main() -> tuple[Swarm, float]:
        swarm = await founded(1200)
        cyd = swarm.peers["cyd"]
        assert cyd.site is not None
        await swarm.until(lambda: len(cyd.chain) == 2)
        swarm.peers["bob"].replica.is_stuck = True
        waited_s, num_mixed = cyd.site.waited_s, len(cyd.replica.mixed)
        await swarm.until(lambda: len(cyd.replica.mixed) == num_mixed + 3)
        waited_s = cyd.site.waited_s - waited_s
        swarm.peers["bob"].replica.is_stuck = False
        await swarm.finish()
        return swarm, waited_s

    swarm, waited_s = run(main())
    assert_same_truth(swarm, 1200)
    assert 0.5 < waited_s < 2.0  # three meetings, 0.5 s apart, at the first of which he is missed


def test_a_slow_neighbour_meets_less_often_and_is_not_waited_for() -> None:
    async def main() -> Swarm:
        swarm = await founded(2000, cyd=2.5)
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 2000)
    ada, cyd = swarm.peers["ada"], swarm.peers["cyd"]
    assert ada.site is not None
    in_last = {steps for steps, _ in cyd.replica.mixed[-3:]}
    assert in_last == {1, 2, 3}  # of 5 steps, which are a quarter of the others' 20
    dan = swarm.peers["dan"]
    assert dan.site is not None
    assert ada.site.waited_s < dan.site.waited_s  # whose neighbour is as fast as he is


@pytest.mark.parametrize("site_steps", [0, 5])
def test_work_that_a_site_has_mixed_is_not_brought_once_more_by_who_was_left_out(
    site_steps: int,
) -> None:
    """What its neighbours had in the round holds most of it; alone it would bring it later."""

    async def main() -> Swarm:
        swarm = await founded(1200, site_steps=site_steps)
        bob = swarm.peers["bob"].replica
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        bob.poison = True  # its contribution alone, not what it brings to its site
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 3)
        bob.poison = False
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 1200)
    trained = Counter(swarm.peers["bob"].replica.trained)
    num_again = sum(times > 1 for times in trained.values())
    assert num_again == (20 if site_steps else 0)


def test_who_fails_on_what_a_neighbour_has_mixed_in_trains_again_alone_and_blames_no_slot() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        swarm.peers["bob"].replica.spoils_site = True
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm)
    trained = Counter(swarm.peers["ada"].replica.trained)
    assert max(trained.values()) == 2  # it did reach her
    results = [certificate.result for certificate in swarm.peers["ada"].chain.certificates]
    assert not any(result.failures for result in results)
    for result in results[:-1]:
        assert {share.peer for share in result.contributions} >= {swarm.peers["ada"].peer_id}
