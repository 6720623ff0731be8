"""How much a peer's memory rises from round to round, in many quick rounds of a small payload.

Half an hour of rounds of the usual length shows that memory rises; in hundreds of quick ones it
shows by how much a round, and the first peer says which lines hold it (so it is not judged: what
watches it takes memory itself).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.soak.swarm import Settings, Swarm
from experiments.soak.watch import own_bytes_of
from peers.processes import Family

NUM_PEERS: Final = 4
SIZE_MIB: Final = 1.0
PERIOD_S: Final = 0.5
LOOK_S: Final = 2.0
WARM_UP: Final = 160  # rounds, until what is bounded is full


async def rise(seconds: float, folder: Path) -> dict[str, Any]:
    """Bytes a round of every peer, by a line through all looks after the warm-up."""
    settings = Settings(
        codec="fp32",
        size_mib=SIZE_MIB,
        num_staying=NUM_PEERS,
        num_leaving=0,
        period_s=PERIOD_S,
        shm="none",
        num_traced=1,
    )
    looks: list[list[float]] = []
    async with Family(folder).keep() as family, AsyncExitStack() as stack:
        swarm = Swarm(family, folder / "rise", settings)
        await swarm.start(stack)
        await swarm.submit()
        pids = [peer.child.process.pid for peer in swarm.peers]
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            await asyncio.sleep(LOOK_S)
            looks.append([await swarm.num_rounds(), *map(own_bytes_of, pids)])
        traced = swarm.peers[0].told.get("traced") or {}
    return {
        "num_peers": NUM_PEERS,
        "size_mib": SIZE_MIB,
        "num_rounds": looks[-1][0],
        "warm_up_rounds": WARM_UP,
        "bytes_a_round": slopes(looks, WARM_UP),
        "traced": traced,
        "looks": looks,
    }


def slopes(looks: list[list[float]], warm_up: int) -> list[float]:
    """Of each peer, bytes a round; least squares. Raises ValueError where all was warm-up."""
    later = np.array([look for look in looks if look[0] >= warm_up])
    if len({look[0] for look in looks if look[0] >= warm_up}) < 2:
        raise ValueError(f"fewer than {warm_up} rounds and some more")
    rounds = later[:, 0] - later[:, 0].mean()
    return [round(float(rounds @ column / (rounds @ rounds)), 1) for column in later[:, 1:].T]
