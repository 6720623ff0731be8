"""hivemind's way: `DecentralizedAverager.load_state_from_peers`, from whichever donor it picks.

S = values of the state
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from hivemind import DecentralizedAverager

from experiments.joiner.download import Download, is_joiner, state_of
from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.hivemind_dht import HivemindDht
from zoonet.exact import Vector

LOAD_S = 200.0


class HivemindState:
    """See `Trainee`. All are averagers of one prefix; the joiner does not offer its state."""

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._dht = HivemindDht(stage)
        self._averager: DecentralizedAverager | None = None
        self._download: Download

    async def start(self) -> Hello:
        return self._dht.start()

    async def connect(self, hellos: list[Hello]) -> None:
        state_S = state_of(self._stage)
        self._averager = DecentralizedAverager(
            [torch.zeros(len(state_S)) if is_joiner(self._stage) else torch.from_numpy(state_S)],
            self._dht.join(hellos),
            start=True,
            prefix="joiner",
            allow_state_sharing=not is_joiner(self._stage),
            shutdown_timeout=2.0,
        )
        self._download = Download(state_S)

    async def train(self) -> None:
        self._download.begin(self._fetch)

    async def _fetch(self) -> Vector:
        assert self._averager is not None
        found = await asyncio.to_thread(self._averager.load_state_from_peers, timeout=LOAD_S)
        if found is None:
            raise ConnectionError("hivemind found nobody who has the state")
        _, (tensor_S,) = found
        values_S: Vector = tensor_S.numpy()
        return values_S

    def figures(self) -> dict[str, Any]:
        return self._download.figures()

    async def close(self) -> None:
        if self._averager is not None:
            self._averager.shutdown()
        self._dht.close()
