"""torch.distributed's gloo: plain TCP, a fixed group, no recovery. What a cluster would use."""

from __future__ import annotations

import asyncio
import datetime
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from experiments.testbed import vectors
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.exact import Vector

TIMEOUT = datetime.timedelta(seconds=300)


class Gloo:
    """See `Contender`. Only its sum is timed; the division comes after."""

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._store: TCPStore | None = None
        self._sum_P = torch.zeros(stage.num_values)

    async def start(self) -> Hello:
        os.environ["GLOO_SOCKET_IFNAME"] = self._stage.interface
        if self._stage.peer != 0:
            return {}
        self._store = self._open_store(self._stage.address, 0)
        return {"port": self._store.port, "address": self._stage.address}

    def _open_store(self, address: str, port: int) -> TCPStore:
        return TCPStore(
            address,
            port,
            self._stage.num_peers,
            self._stage.peer == 0,
            timeout=TIMEOUT,
            wait_for_workers=False,
        )

    async def connect(self, hellos: list[Hello]) -> None:
        if self._store is None:
            self._store = self._open_store(hellos[0]["address"], hellos[0]["port"])
        await asyncio.to_thread(
            dist.init_process_group,
            "gloo",
            store=self._store,
            rank=self._stage.peer,
            world_size=self._stage.num_peers,
            timeout=TIMEOUT,
        )

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        self._sum_P.copy_(torch.from_numpy(contribution_P))
        return {}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        await asyncio.to_thread(dist.all_reduce, self._sum_P)
        return list(range(self._stage.num_peers))

    def result(self) -> Vector:
        mean_P: Vector = self._sum_P.numpy() * np.float32(1 / self._stage.num_peers)
        return mean_P

    async def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
