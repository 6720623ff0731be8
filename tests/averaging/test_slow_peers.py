"""Peers that are a little slower than the others stay with them."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from tests.averaging.swarm import CountingReplica, Swarm, contributed_slots
from zoonet.averaging import RoundsConfig
from zoonet.ranges import count
from zoonet.testing import run

NAMES = ("ada", "bob", "cyd", "dan")


class SlowReplica(CountingReplica):
    """Takes a while over the outer step, and notes when it had to fetch a state."""

    stage_s = 0.0
    num_fetched = 0

    async def stage(self, mean_P: np.ndarray) -> bytes:
        await asyncio.sleep(self.stage_s)
        return await super().stage(mean_P)

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        self.num_fetched += 1
        await super().adopt(state, digests, chunks)


@pytest.mark.parametrize("stage_s", [0.05, 0.5, 1.5])
def test_who_is_last_to_finish_a_round_does_not_fetch_what_it_is_about_to_have(
    stage_s: float,
) -> None:
    async def main() -> Swarm:
        swarm = Swarm(200, RoundsConfig(inner_steps=10, min_founders=4))
        for name in NAMES:
            peer = await swarm.add(name)
            peer.replica.__class__ = SlowReplica
        swarm.peers["dan"].replica.stage_s = stage_s
        swarm.start()
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert contributed_slots(swarm.peers["ada"].chain) == list(range(200))
    assert [peer.replica.num_fetched for peer in swarm.peers.values()] == [0, 0, 0, 0]
    for link in swarm.peers["ada"].chain.certificates:
        assert len(link.result.contributions) == 4


@pytest.mark.parametrize("latency_s", [0.05, 0.2, 0.3])
def test_a_peer_with_a_slow_link_takes_part_in_every_round(latency_s: float) -> None:
    async def main() -> Swarm:
        swarm = Swarm(200, RoundsConfig(inner_steps=10, min_founders=4))
        for name in NAMES:
            await swarm.add(name)
        swarm.memory.faults.extra_delay_s[swarm.peers["dan"].peer_id] = latency_s
        swarm.start()
        await swarm.finish()
        return swarm

    swarm = run(main())
    dan = swarm.peers["dan"].peer_id
    for link in swarm.peers["ada"].chain.certificates:
        assert dan in [share.peer for share in link.result.contributions]


@pytest.mark.parametrize("slowdown", [20.0, 1000.0])
def test_a_peer_that_becomes_slow_in_mid_round_hands_over_what_it_has(slowdown: float) -> None:
    """Something else wants its machine: others wait half a round more, once."""

    async def main() -> tuple[Swarm, list[float]]:
        swarm = Swarm(1600, RoundsConfig(inner_steps=40, min_founders=4))
        for name in NAMES:
            await swarm.add(name)
        swarm.start()
        ada, dan = swarm.peers["ada"], swarm.peers["dan"]
        await swarm.until(lambda: len(ada.chain) == 2)
        trained = len(dan.replica.trained)
        await swarm.until(lambda: len(dan.replica.trained) == trained + 20)
        dan.replica.speed /= slowdown
        ends = [asyncio.get_running_loop().time() - 2.0]
        for length in range(3, 6):
            await swarm.until(lambda at=length: len(ada.chain) == at)
            ends.append(asyncio.get_running_loop().time())
        await swarm.finish()
        return swarm, [after - before for before, after in itertools.pairwise(ends)]

    swarm, took_s = run(main())
    chain = swarm.peers["ada"].chain
    assert contributed_slots(chain) == list(range(1600))
    dan = swarm.peers["dan"].peer_id
    given = [
        sum(count(one.slots) for one in link.result.contributions if one.peer == dan)
        for link in chain.certificates
    ]
    usual_s = 4.0  # 40 steps
    if slowdown == 20.0:
        assert 20 <= given[2] < 40, "what it has"
        assert given[3:8] == [2] * 5, "a fair lease for its new speed"
        assert took_s[0] < 2 * usual_s + 1.0, "half a round more, and the step under way"
        assert max(took_s[1:]) < usual_s + 1.0
    else:  # not even the step under way ends: it is left out
        assert max(took_s) < 4 * usual_s
        assert took_s[-1] < 2 * usual_s
