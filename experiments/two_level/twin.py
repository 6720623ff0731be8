"""Replicas of a job in one process, in sites whose members average their parameters now and then.

Everything but the wire is production code: `TrainingReplica.train` stops where the members of a
site meet, and goes on from their mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import numpy as np

from experiments.staleness.twin import Prepared, Twin
from zoonet.config import num_slots
from zoonet.exact import Vector, weighted_mean
from zoonet.ranges import Ranges, count, take
from zoonet.training.replica import TrainingReplica


class Meeting:
    """One mean among the members of a site: whoever comes last makes it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._came: list[Vector] = []
        self._is_held = asyncio.Event()

    async def mix(self, _: int, local_P: Vector) -> bool:
        """Average `local_P` in place with those of the others, once all are here."""
        self._came.append(local_P)
        if len(self._came) == self._size:
            mean_P = weighted_mean(self._came, [1] * self._size)
            for other_P in self._came:
                np.copyto(other_P, mean_P)
            self._came.clear()
            held, self._is_held = self._is_held, asyncio.Event()
            held.set()
        else:
            await self._is_held.wait()
        return True


class SitedTwin:
    """Peers of a job, so many in each site, that meet every `site_steps` steps. Use `open`."""

    def __init__(
        self,
        prepared: Prepared,
        replicas: Sequence[TrainingReplica],
        site_sizes: Sequence[int],
        site_steps: int,
    ) -> None:
        self.replicas = replicas
        self._meetings = [meeting for size in site_sizes for meeting in [Meeting(size)] * size]
        self._steps = prepared.job.training.inner_steps
        self._stops = range(site_steps, self._steps, site_steps) if site_steps else range(0)
        self._free: Ranges = ((0, num_slots(prepared.job)),)
        self._num_done = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, prepared: Prepared, *, site_sizes: Sequence[int], site_steps: int
    ) -> AsyncIterator[Self]:
        """Load the job once for each peer; `site_steps` 0: nobody meets."""
        async with Twin.open(prepared, num_replicas=sum(site_sizes), delay=0) as twin:
            yield cls(prepared, twin.replicas, site_sizes, site_steps)

    async def play(self) -> None:
        """Train the job to its end; slots that do not suffice for a whole round are left over."""
        while count(self._free) >= self._steps * len(self.replicas):
            await self._play_round()

    async def _play_round(self) -> None:
        leases = []
        for _ in self.replicas:
            lease, self._free = take(self._free, self._steps)
            leases.append(lease)
        num_planned = self._steps * len(leases)
        await asyncio.gather(
            *(
                replica.train(
                    lease,
                    steps=self._steps,
                    num_done=self._num_done,
                    num_planned=num_planned,
                    stops=self._stops,
                    mix=meeting.mix,
                )
                for replica, lease, meeting in zip(
                    self.replicas, leases, self._meetings, strict=True
                )
            )
        )
        deltas = [await replica.pseudo_gradient() for replica in self.replicas]
        mean_P = weighted_mean(deltas, [1] * len(deltas))
        for replica in self.replicas:
            await replica.commit(await replica.stage(mean_P), is_merged=True)
        self._num_done += num_planned

    async def loss(self) -> float:
        """Held-out loss of the outer parameters, in nats a token, over the whole held-out text."""
        return (await self.replicas[0].evaluate(0)).loss
