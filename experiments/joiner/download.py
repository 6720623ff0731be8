"""What every contender here has in common: the state, and the record of a joiner's downloads.

The last peer is the joiner, all others are donors and hold the same state. Each contender is a
`Trainee`: to train is to begin a download, its figures are what came of it.

S = values of the state
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from experiments.testbed import vectors
from experiments.testbed.contenders.base import Stage
from zoonet.exact import Vector


def state_of(stage: Stage) -> Vector:
    """The state (S,) that all donors hold."""
    return vectors.noise(stage.num_values)


def is_joiner(stage: Stage) -> bool:
    """Whether this peer is the one that joins."""
    return stage.peer == stage.num_peers - 1


class Download:
    """One download at a time, begun here and looked at from outside."""

    def __init__(self, expected_S: Vector) -> None:
        self._expected_S = expected_S
        self._task: asyncio.Task[dict[str, Any]] | None = None

    def begin(self, fetch: Callable[[], Awaitable[Vector]]) -> None:
        """Let `fetch` bring the state. Its time ends when it has returned."""
        self._task = asyncio.create_task(self._run(fetch))

    async def _run(self, fetch: Callable[[], Awaitable[Vector]]) -> dict[str, Any]:
        cpu_s, began = time.process_time(), time.monotonic()
        found_S = await fetch()
        ended = time.monotonic()
        return {
            "began": began,
            "ended": ended,
            "cpu_s": time.process_time() - cpu_s,
            "is_right": bool(np.array_equal(found_S, self._expected_S)),
        }

    def figures(self) -> dict[str, Any]:
        """What came of it; empty while it is under way. Raises what has ended it."""
        if self._task is None or not self._task.done():
            return {}
        return self._task.result()
