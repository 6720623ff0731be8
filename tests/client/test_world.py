"""Entering a run by a list of peers, over real hosts on loopback."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
import torch

from tests.client.test_entry import LOOPBACK, base, bootstrap
from tests.contracts.networks import identity_of
from zoonet.client import join_world
from zoonet.distributed import ExchangeConfig, World
from zoonet.errors import ConfigError, KeyFileError

__all__ = ["base"]
torch.set_num_threads(1)

KEYS = [identity_of(name) for name in ("one", "two")]
CONFIG = ExchangeConfig(run="test", join_timeout_s=60)


@pytest.mark.p2p
def test_peers_named_by_their_ids_find_each_other_in_the_swarm(base: Path) -> None:
    ids = [key.peer_id for key in KEYS]

    def take_part(rank: int, addresses: tuple[str, ...]) -> None:
        enter = functools.partial(join_world, ids, bootstrap=addresses, listen=LOOPBACK)
        with enter(key=KEYS[rank], config=CONFIG) as world:
            exchange_tensors(world)

    async def story() -> None:
        async with bootstrap(base) as addresses, asyncio.timeout(120):
            await asyncio.gather(
                *(asyncio.to_thread(take_part, rank, addresses) for rank in range(2))
            )

    asyncio.run(story())


def exchange_tensors(world: World) -> None:
    other = world.peers[1 - world.rank]
    sent, received = torch.full((300_000,), float(world.rank)), torch.empty(300_000)
    works = [world.isend(sent, other), world.irecv(received, other)]
    assert all(work.wait() for work in works)
    assert received[-1] == 1 - world.rank


def test_what_cannot_work_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    ids = [key.peer_id for key in KEYS]
    with pytest.raises(ConfigError, match=r"peer .* is named without an address; give its"):
        join_world(ids, key=KEYS[0])
    with pytest.raises(ConfigError, match="is not usable"):
        join_world([ids[0], "/ip4/127.0.0.1/tcp/1"], key=KEYS[0])
    with pytest.raises(ConfigError, match="is not in the list of peers"):
        join_world(ids, key=identity_of("stranger"), bootstrap=["/ip4/127.0.0.1/tcp/1"])
    with pytest.raises(KeyFileError, match="cannot read the key file"):
        join_world(ids, key=tmp_path / "missing.pem")
