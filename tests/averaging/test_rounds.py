"""Whole jobs of several peers in virtual time: agreement, faults, joiners, partitions."""

from __future__ import annotations

import asyncio

import pytest

from tests.averaging.swarm import Swarm, contributed_slots
from zoonet.averaging import RoundsConfig
from zoonet.errors import ShardUnavailable
from zoonet.testing import run

NAMES = ("ada", "bob", "cyd", "dan")


async def founded(num_slots: int = 400, names: tuple[str, ...] = NAMES, **config: int) -> Swarm:
    swarm = Swarm(num_slots, RoundsConfig(inner_steps=10, min_founders=len(names), **config))
    for name in names:
        await swarm.add(name)
    swarm.start()
    return swarm


def assert_same_truth(swarm: Swarm, num_slots: int) -> None:
    """Everybody has the same chain and the same bits, and each slot was averaged in once."""
    peers = list(swarm.peers.values())
    assert len({peer.chain.head for peer in peers}) == 1
    assert len({peer.replica.theta_P.tobytes() for peer in peers}) == 1
    assert contributed_slots(peers[0].chain) == list(range(num_slots))


def test_four_peers_train_every_slot_once_and_end_bit_identical() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 400)
    chain = swarm.peers["ada"].chain
    assert len(chain) == 10
    for certificate in chain.certificates:
        assert len(certificate.result.members) == 4
        assert len(certificate.result.contributions) == 4


def test_a_peer_alone_trains_its_job_to_the_end() -> None:
    async def main() -> Swarm:
        swarm = await founded(names=("ada",))
        await swarm.finish()
        return swarm

    assert_same_truth(run(main()), 400)


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("delay_steps", [3, 9, 10, 11])
def test_a_killed_peer_costs_its_contribution_and_nothing_else(
    victim: str, delay_steps: int
) -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        trained = len(swarm.peers[victim].replica.trained)
        await swarm.until(
            lambda: len(swarm.peers[victim].replica.trained) >= trained + min(delay_steps, 10)
        )
        await swarm.kill(victim)
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 400)
    assert len(next(iter(swarm.peers.values())).chain.last.members) == 3


def test_three_of_four_die_at_once_and_the_last_one_finishes_the_job() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        for victim in ("bob", "cyd", "dan"):
            await swarm.kill(victim)
        await swarm.finish()
        return swarm

    assert_same_truth(run(main()), 400)


def test_a_late_peer_fetches_the_state_and_becomes_a_member() -> None:
    async def main() -> Swarm:
        swarm = await founded(num_slots=600)
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 3)
        await swarm.add("eve")
        swarm.start("eve")
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 600)
    eve = swarm.peers["eve"].peer_id
    links = swarm.peers["ada"].chain.certificates
    joined = [link.result.index for link in links if eve in link.result.joiners]
    trained = [link.result.index for link in links if eve in link.result.members]
    assert joined and trained and joined[0] <= 5 and trained[0] == joined[-1] + 1
    assert len(trained) >= 5


def test_a_stuck_trainer_is_left_out_and_its_slots_are_trained_by_others() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        swarm.peers["bob"].replica.is_stuck = True
        await swarm.finish()
        return swarm

    assert_same_truth(run(main()), 400)


def test_a_peer_that_sends_nan_is_left_out_of_the_round() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        swarm.peers["bob"].replica.poison = True
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 4)
        swarm.peers["bob"].replica.poison = False
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 400)
    bob = swarm.peers["bob"].peer_id
    link = swarm.peers["ada"].chain.certificates[3]
    assert bob not in [share.peer for share in link.result.contributions]


def test_a_loss_that_becomes_nan_loses_that_peers_round_only() -> None:
    async def main() -> Swarm:
        swarm = await founded()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        swarm.peers["bob"].replica.fails = 1
        await swarm.finish()
        return swarm

    assert_same_truth(run(main()), 400)


def test_a_slow_peer_takes_fewer_steps_and_nobody_waits_for_it() -> None:
    async def main() -> Swarm:
        swarm = Swarm(600, RoundsConfig(inner_steps=10, min_founders=3))
        for name in ("ada", "bob"):
            await swarm.add(name, slots_per_s=10.0)
        await swarm.add("slow", slots_per_s=2.5)
        swarm.start()
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 600)
    slow = swarm.peers["slow"].peer_id
    shares = {
        share.peer: share.slots
        for share in swarm.peers["ada"].chain.certificates[5].result.contributions
    }
    assert sum(stop - start for start, stop in shares[slow]) in (2, 3)


def test_two_halves_of_a_partition_go_on_and_merge_into_the_heavier() -> None:
    async def main() -> Swarm:
        names = ("ada", "bob", "cyd", "dan", "eve")
        swarm = await founded(num_slots=1500, names=names)
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        left, right = ("ada", "bob"), ("cyd", "dan", "eve")
        pairs = [(swarm.peers[a].peer_id, swarm.peers[b].peer_id) for a in left for b in right]
        for pair in pairs:
            swarm.memory.faults.cut(*pair)
        await swarm.until(
            lambda: all(len(swarm.peers[name].chain) >= 5 for name in (*left, *right))
        )
        assert swarm.peers["ada"].chain.head != swarm.peers["cyd"].chain.head
        for pair in pairs:
            swarm.memory.faults.heal(*pair)
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 1500)
    assert len(swarm.peers["ada"].chain.last.members) == 5


def test_the_same_seed_gives_the_same_chain_twice() -> None:
    async def main() -> bytes:
        swarm = await founded()
        await swarm.finish()
        return swarm.peers["ada"].chain.head

    assert run(main()) == run(main())


@pytest.mark.parametrize("slow_s", [0.02, 0.3, 2.0])
def test_peers_that_take_a_while_to_apply_a_round_are_not_held_suspect(slow_s: float) -> None:
    async def main() -> Swarm:
        swarm = Swarm(400, RoundsConfig(inner_steps=10, min_founders=4))
        for place, name in enumerate(NAMES):
            peer = await swarm.add(name)
            peer.replica.commit_s = slow_s * place / len(NAMES)
        swarm.start()
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 400)
    for link in swarm.peers["ada"].chain.certificates:
        assert len(link.result.members) == 4
        assert len(link.result.contributions) == 4


def test_who_comes_after_the_end_is_told_so_and_does_not_wait_for_ever() -> None:
    async def main() -> None:
        swarm = await founded(num_slots=80, names=("ada", "bob"))
        await swarm.finish()
        for peer in swarm.peers.values():
            peer.replica.is_released = True
        eve = await swarm.add("eve")
        swarm.start("eve")
        assert eve.task is not None
        with pytest.raises(ShardUnavailable, match="finished"):
            await asyncio.wait_for(eve.task, timeout=120.0)

    run(main())


def test_joiners_that_vanish_before_their_first_round_cost_no_turn() -> None:
    """Turns fall to those who have shown that they are there before the ones just let in."""

    async def main() -> Swarm:
        swarm = await founded(num_slots=2000, names=NAMES[:3])
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 1)
        for number in range(8):
            eve = await swarm.add(f"eve{number}")
            swarm.start(f"eve{number}")
            await swarm.until(
                lambda one=eve: one.peer_id in swarm.peers["ada"].chain.roster,
                step_s=1e-3,  # before the next round is planned with it
            )
            await swarm.kill(f"eve{number}")
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert_same_truth(swarm, 2000)
    links = swarm.peers["ada"].chain.certificates
    assert sum(len(link.result.joiners) for link in links) == 8
    assert {link.result.view for link in links} == {0}
