"""A trainer inside the calling process: no process, no thread, no real time.

For swarms in memory and for notebooks that debug a recipe. It computes on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zoonet import ranges
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import OnStep
from zoonet.training.messages import Evaluated, Sample, Start, StepDone, Train, Trained
from zoonet.training.session import TrainingSession, each, position


class InlineTrainer:
    """The `Trainer` Protocol by direct calls; time is the running loop's. Use `open`."""

    def __init__(self, session: TrainingSession, buffers: SharedBuffers, step_s: float) -> None:
        self._session = session
        self._buffers = buffers
        self._step_s = step_s
        self._lock = asyncio.Lock()
        self._is_stopped = False
        self.device = str(session.device)
        self.layout = session.layout

    @classmethod
    @asynccontextmanager
    async def open(
        cls, start: Start, buffers: SharedBuffers, *, step_s: float = 0.0
    ) -> AsyncIterator[InlineTrainer]:
        """Load the job. Each step takes `step_s` on the loop's clock. Raises ConfigError."""
        with TrainingSession(start) as session:
            yield cls(session, buffers, step_s)

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        async with self._lock:
            self._is_stopped = False
            return await self._train(command, on_step)

    async def _train(self, command: Train, on_step: OnStep | None) -> Trained:
        session, loop = self._session, asyncio.get_running_loop()
        started = loop.time()
        session.begin_round(
            self._buffers.local_P, self._buffers.inner_N if command.has_inner_state else None
        )
        num_slots, steps, loss_sum = ranges.count(command.slots), 0, 0.0
        for slot in each(command.slots):
            await asyncio.sleep(self._step_s)
            if self._is_stopped:
                break
            session.step(slot, position(command, steps, num_slots, session.spec.tokens))
            steps += 1
            loss = session.take_loss()
            loss_sum += loss
            if on_step is not None:
                speed = steps * session.tokens_per_step / max(1e-9, loop.time() - started)
                on_step(StepDone(steps=steps, of=num_slots, loss=loss, tokens_per_s=speed))
        session.finish_round(self._buffers.local_P, self._buffers.inner_N)
        return Trained(
            round=command.round,
            slots=ranges.take(command.slots, steps)[0],
            loss=loss_sum / max(1, steps),
            tokens=steps * session.tokens_per_step,
            seconds=loop.time() - started,
        )

    async def stop(self) -> None:
        self._is_stopped = True

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        async with self._lock:
            loss, tokens = self._session.evaluate(
                self._buffers.global_P, max_tokens=max_tokens, is_stopped=lambda: False
            )
            return Evaluated(loss=loss, tokens=tokens)

    async def sample(self, request: Sample) -> str:
        async with self._lock:
            return self._session.sample(self._buffers.global_P, request)
