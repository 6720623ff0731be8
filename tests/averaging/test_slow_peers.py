"""Peers that are a little slower than the others stay with them."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.averaging.swarm import CountingReplica, Swarm, contributed_slots
from zoonet.averaging import RoundsConfig
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
