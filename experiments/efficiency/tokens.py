"""One training in one process: the production optimizer of all peers, or one model in their place.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from experiments.efficiency.contenders import Contender, Scale, Setting, job_of
from experiments.staleness.twin import Prepared, Twin
from experiments.two_level.twin import SitedTwin
from zoonet.config import ComputeJob, num_slots, tokens_per_slot
from zoonet.errors import TrainingError
from zoonet.training.inner import learning_rate
from zoonet.training.messages import Start
from zoonet.training.session import TrainingSession

CURVE_POINTS: Final = 12
CURVE_TOKENS: Final = 16_384  # held-out tokens of each point but the last, which is over all

Curve = list[tuple[int, float]]  # training tokens so far, held-out loss in nats a token
OnProgress = Callable[[float], None]  # told the share that is done


class DelayedSession(TrainingSession):
    """Applies each gradient one step late, as `hivemind.Optimizer` does when it is delayed."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._waiting_P: torch.Tensor | None = None

    def step(self, slot: int, progress: float, drift: float = 0.0) -> None:
        """Compute a slot's gradient here, and step along that of the slot before."""
        assert not drift, "there is no outer momentum here"
        loss = self._gradient.backward(self.read(slot), slot)
        fresh_P = self._flat.grad_P.clone()
        if self._waiting_P is not None:
            self._flat.grad_P.copy_(self._waiting_P)
            self._optimizer.step_(learning_rate(progress, self.spec))
        self._waiting_P = fresh_P
        self._losses.append((slot, loss))


def train_one(prepared: Prepared, *, is_delayed: bool, on_progress: OnProgress) -> Curve:
    """Train one model on every slot, step by step. Raises TrainingError."""
    total, per_slot = num_slots(prepared.job), tokens_per_slot(prepared.job)
    looks = {round(total * n / CURVE_POINTS) for n in range(1, CURVE_POINTS)}
    theta_P, curve = prepared.initial_P.copy(), Curve()
    with (DelayedSession if is_delayed else TrainingSession)(prepared.start) as session:
        inner_N = torch.empty(2 * theta_P.size + 1).numpy()

        def look(num_done: int, max_tokens: int) -> None:
            session.take_loss()  # raises where there is none
            session.finish_round(theta_P, inner_N)
            loss, _ = session.evaluate(theta_P, max_tokens=max_tokens, is_stopped=lambda: False)
            curve.append((num_done * per_slot, loss))

        session.begin(theta_P, None)
        for slot in range(total):
            session.step(slot, (slot + 0.5) / total)
            if slot + 1 in looks and slot + 1 < total:
                look(slot + 1, CURVE_TOKENS)
                on_progress((slot + 1) / total)
        look(total, 0)
    return curve


class _Watch:
    """Looks at the outer parameters every few rounds."""

    def __init__(self, prepared: Prepared, num_peers: int, on_progress: OnProgress) -> None:
        self.curve: Curve = []
        self._on_progress = on_progress
        self._per_round = num_peers * prepared.job.training.inner_steps
        self._per_slot, self._slots = tokens_per_slot(prepared.job), num_slots(prepared.job)
        self._every = max(1, self._slots // self._per_round // CURVE_POINTS)
        self._num_rounds = 0

    async def look(self, twin: Twin | SitedTwin) -> None:
        """A round is over."""
        self._num_rounds += 1
        slots = self._num_rounds * self._per_round
        if self._num_rounds % self._every == 0 and slots < self._slots:
            loss = (await twin.replicas[0].evaluate(CURVE_TOKENS)).loss
            self.curve.append((slots * self._per_slot, loss))
            self._on_progress(slots / self._slots)


class _WatchedTwin(Twin):
    watch: _Watch

    async def _play_round(self) -> None:
        await super()._play_round()
        await self.watch.look(self)


class _WatchedSites(SitedTwin):
    watch: _Watch

    async def _play_round(self) -> None:
        await super()._play_round()
        await self.watch.look(self)


async def train_peers(prepared: Prepared, contender: Contender, on_progress: OnProgress) -> Curve:
    """Train all peers of a contender to the job's end. Raises TrainingError."""
    num_peers = sum(contender.sites)
    opened = (
        _WatchedSites.open(prepared, site_sizes=contender.sites, site_steps=contender.site_steps)
        if contender.site_steps
        else _WatchedTwin.open(prepared, num_replicas=num_peers, delay=contender.early)
    )
    async with opened as twin:
        twin.watch = watch = _Watch(prepared, num_peers, on_progress)
        await twin.play()
        total = num_slots(prepared.job) * tokens_per_slot(prepared.job)
        return [*watch.curve, (total, await twin.loss())]


def course(job: ComputeJob, contender: Contender, on_progress: OnProgress) -> Curve:
    """Train a job; return how its loss fell. Empty where training came to no number."""
    with tempfile.TemporaryDirectory(prefix="zn-") as folder:
        prepared = Prepared(job, Path(folder))
        try:
            if contender.is_ours:
                return asyncio.run(train_peers(prepared, contender, on_progress))
            return train_one(prepared, is_delayed=contender.is_delayed, on_progress=on_progress)
        except TrainingError:
            return []


def run(
    setting: Setting, scale: Scale, text: str, on_progress: OnProgress = lambda _: None
) -> dict[str, Any]:
    """Train; return the entry of the table. Its loss is None where training came to no number."""
    torch.set_num_threads(1)
    began, job = time.monotonic(), job_of(setting, scale, text)
    curve = course(job, setting.find(), on_progress)
    return {
        **asdict(setting),
        "tokens": job.training_config.tokens,
        "loss": curve[-1][1] if curve else None,
        "curve": curve,
        "seconds": round(time.monotonic() - began, 1),
    }
