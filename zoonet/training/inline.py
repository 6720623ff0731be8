"""A trainer inside the calling process: no process, no thread, no real time.

For swarms in memory and for notebooks that debug a recipe. It computes on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import OnStep
from zoonet.training.messages import Evaluated, Sample, Start, Train, Trained
from zoonet.training.session import TrainingSession
from zoonet.training.workload import Workload


class InlineTrainer:
    """The `Trainer` Protocol by direct calls; time is the running loop's. Use `open`."""

    def __init__(self, session: TrainingSession, buffers: SharedBuffers, step_s: float) -> None:
        self._session = session
        self._buffers = buffers
        self._step_s = step_s
        self._work = Workload(session, buffers, asyncio.get_running_loop().time)
        self._lock = asyncio.Lock()
        self._ahead: asyncio.Task[None] | None = None
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
            trainer = cls(session, buffers, step_s)
            try:
                yield trainer
            finally:
                await trainer._rest()

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        async with self._paused():
            self._is_stopped = False
            try:
                trained = await self._train(command, on_step)
            except BaseException:
                self._work.abandon()
                raise
            return trained

    async def _train(self, command: Train, on_step: OnStep | None) -> Trained:
        self._work.take_on(command)
        while not self._work.is_due:
            await asyncio.sleep(self._step_s)
            if self._is_stopped:
                break
            self._work.step()
            if on_step is not None and (progress := self._work.progress()) is not None:
                on_step(progress)
        return self._work.report()

    async def merge(self, *, is_merged: bool) -> None:
        async with self._paused():
            self._work.merge(is_merged=is_merged)

    async def stop(self) -> None:
        self._is_stopped = True

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        async with self._paused():
            loss, tokens = self._session.evaluate(
                self._buffers.global_P, max_tokens=max_tokens, is_stopped=lambda: False
            )
            return Evaluated(loss=loss, tokens=tokens)

    async def sample(self, request: Sample) -> str:
        async with self._paused():
            return self._session.sample(self._buffers.global_P, request)

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Do one thing at a time; between them train ahead."""
        async with self._lock:
            await self._rest()
            yield
            if self._work.is_more:
                self._ahead = asyncio.create_task(self._go_on())

    async def _rest(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
            self._ahead = None

    async def _go_on(self) -> None:
        while self._work.is_more:
            await asyncio.sleep(self._step_s)
            self._work.step_ahead()
