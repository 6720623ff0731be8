"""hivemind's `DecentralizedAverager`, as well tuned as its options allow.

The group has a fixed size, so that matchmaking ends as soon as everyone has been found; both of
its times are as short as a loaded machine bears. The all-reduce begins at a trigger, so that a
round's own time and that of the matchmaking before it are known apart. The variant "default" is
hivemind as it comes: 5 s of matchmaking, groups of whoever is there.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import numpy as np
import torch
from hivemind import DecentralizedAverager
from hivemind.averaging.control import AveragingStage

from experiments.testbed import vectors
from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.hivemind_dht import HivemindDht
from zoonet.exact import Vector

GROUP_FOUND_S: Final = 60.0
LOOK_AGAIN_S: Final = 0.005
TUNED: Final[dict[str, Any]] = {
    "min_matchmaking_time": 1.0,  # with less, groups of eight often fail to form here
    "request_timeout": 0.5,
    "part_size_bytes": 2**19,  # its default; larger parts were no faster
    # A peer that sends nothing for so long is left out. By default it is waited for for ever.
    "sender_timeout": 2.0,
    "reducer_timeout": 4.0,
}


class Hivemind:
    """See `Contender`. `prepare` is the matchmaking, `run` the round."""

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._is_tuned = variant != "default"
        self._dht = HivemindDht(stage)
        self._averager: DecentralizedAverager | None = None
        self._step: Any = None
        self._mean_P = np.zeros(0, np.float32)

    async def start(self) -> Hello:
        return self._dht.start()

    async def connect(self, hellos: list[Hello]) -> None:
        everyone = self._stage.num_peers
        sizes = {"target_group_size": everyone, "min_group_size": everyone}
        options = TUNED | sizes | self._stage.options.get("hivemind", {}) if self._is_tuned else {}
        self._averager = DecentralizedAverager(
            [torch.zeros(self._stage.num_values)],
            self._dht.join(hellos),
            start=True,
            prefix="benchmark",
            shutdown_timeout=2.0,
            **options,
        )

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        assert self._averager is not None
        with self._averager.get_tensors() as tensors:
            tensors[0].copy_(torch.from_numpy(contribution_P))
        self._step = self._averager.step(
            gather=self._stage.peer,
            timeout=GROUP_FOUND_S,
            allow_retries=True,
            wait=False,
            require_trigger=True,
        )
        deadline = time.monotonic() + GROUP_FOUND_S
        while self._step.stage != AveragingStage.AWAITING_TRIGGER:
            if self._step.done() or time.monotonic() > deadline:
                raise TimeoutError(f"no group of {self._stage.num_peers} peers was found")
            await asyncio.sleep(LOOK_AGAIN_S)
        return {}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        self._step.allow_allreduce()
        gathered = await asyncio.to_thread(self._step.result, 300.0)
        return sorted(gathered.values())

    def result(self) -> Vector:
        assert self._averager is not None
        with self._averager.get_tensors() as tensors:
            self._mean_P = tensors[0].numpy().copy()
        return self._mean_P

    async def close(self) -> None:
        if self._averager is not None:
            self._averager.shutdown()
        self._dht.close()
