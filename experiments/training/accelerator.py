"""A virtual accelerator: real steps of a small model, each made to last as long as its tokens say.

Eight peers share the cores of one machine, and none of them is measured: a step computes for some
milliseconds and then waits until its time is over, as a host waits for its device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

QUEUE_S: Final = 0.005  # a device has its next step queued: so short a gap of its host is none


class Accelerator:
    """One peer's device. Steps come one after the other, from one thread."""

    def __init__(
        self,
        step_s: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.step_s = step_s
        self.began: list[float] = []  # of each step, monotonic
        self.overrun_s = 0.0  # that steps took longer, because the machine was too slow
        self._now = now
        self._sleep = sleep
        self._free_at = float("-inf")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Keep the device busy for `step_s`, around what really is computed."""
        now = self._now()
        began = self._free_at if now - self._free_at < QUEUE_S else now
        self.began.append(began)
        yield
        end, now = began + self.step_s, self._now()
        if now < end:
            self._sleep(end - now)
        self.overrun_s += max(0.0, now - end)
        self._free_at = max(end, now)

    def figures(self) -> dict[str, Any]:
        """What it has done, as JSON."""
        return {"step_s": self.step_s, "began": self.began, "overrun_s": self.overrun_s}
