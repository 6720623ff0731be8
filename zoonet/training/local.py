"""One peer's local work: what its trainer has done on top of the outer parameters.

::

    outer ──train──> told ──train ahead──> ┐            told: the work that the round holds
                                           └─move──>    certified: onto the new outer parameters

While a round is averaged, the trainer goes on from where it stands. When the round is certified it
moves by the difference between the new outer parameters and what it had told. Work that the round
does not hold stays on top: nothing is lost, and nothing counts twice.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from msgspec.structs import replace

from zoonet.errors import ConfigError, NonFiniteLoss, OutOfDeviceMemory, TrainingError, WorkLost
from zoonet.exact import Vector
from zoonet.ranges import Ranges, count, difference, normalise, take, union
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import OnStep, Trainer
from zoonet.training.messages import Evaluated, StepDone, Train, Trained

OpenTrainer = Callable[[], AbstractAsyncContextManager[Trainer]]
Mix = Callable[[int, Vector], Awaitable[bool]]

MAX_FAILURES_IN_A_ROW: Final = 3
_SPEED_SMOOTHING: Final = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a round stands on the learning-rate schedule, in the job's tokens."""

    round: int
    tokens_done: int  # certified before it
    tokens_planned: int  # asked of all its members


class LocalWork:
    """The trainer, which slots it has trained, and where its parameters stand. Use `open`.

    `buffers.local_P` is what was told of until `move` overwrites it with what to move by.
    """

    def __init__(self, buffers: SharedBuffers, open_trainer: OpenTrainer, on_step: OnStep) -> None:
        self.carried: Ranges = ()  # trained slots that no certified round holds
        self.num_trained = 0
        self.slots_per_s = 0.0
        self.is_fresh = True  # there is none: the trainer starts from the outer parameters
        self._told: Ranges = ()  # of `carried`, what the round under way holds
        self._buffers = buffers
        self._open_trainer = open_trainer
        self._on_step = on_step
        self._has_inner_state = False
        self._num_failures = 0
        self._failed_round = -1  # the last one that a slot was to blame for
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._moving: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._trainer: Trainer
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, buffers: SharedBuffers, open_trainer: OpenTrainer, on_step: OnStep
    ) -> AsyncIterator[Self]:
        """Start a trainer. Raises TrainingError or ConfigError where it cannot load the job."""
        work = cls(buffers, open_trainer, on_step)
        async with work._stack:
            await work._start_trainer()
            try:
                yield work
            finally:
                await work._end_move()

    async def _start_trainer(self) -> None:
        self._trainer = await self._stack.enter_async_context(self._open_trainer())

    @property
    def trainer(self) -> Trainer:
        """The one that lives: after a death it is another one."""
        return self._trainer

    # --- training -----------------------------------------------------------------------------

    async def train(
        self,
        slots: Ranges,
        *,
        steps: int,
        schedule: Schedule,
        stops: Sequence[int] = (),
        mix: Mix | None = None,
    ) -> Trained:
        """Train, and leave theta_local in `local_P`; see `zoonet.averaging.Replica.train`.

        Raises WorkLost, or TrainingError after too many failures in a row.
        """
        await self.moved()
        pauses = [at for at in stops if count(self.carried) < at < steps] if mix else []
        parts = []
        is_changed = False
        for stop in (*pauses, steps):
            command = self._command(slots, stop, steps, schedule)
            parts.append(await self._train(replace(command, takes_local=is_changed)))
            is_changed = False
            if self._stopped.is_set() or count(self.carried) < stop:
                break
            if mix is not None and stop in pauses:
                is_changed = await self._mixed(stop, mix)
        trained = parts[0] if len(parts) == 1 else joined(parts)
        self._note_speed(count(trained.slots), trained.seconds)
        return trained

    def _command(self, slots: Ranges, stop: int, steps: int, schedule: Schedule) -> Train:
        """Train the slots up to `stop` of `steps`; up to the last one, also those beyond."""
        left = difference(slots, self.carried)
        if stop < steps:
            left, _ = take(left, stop - count(self.carried))
        return Train(
            round=schedule.round,
            slots=left,
            steps=0 if self._stopped.is_set() else stop,
            num_carried=count(self.carried),
            tokens_done=schedule.tokens_done,
            tokens_planned=schedule.tokens_planned * stop // max(1, steps),
            is_fresh=self.is_fresh,
            has_inner_state=self._has_inner_state,
            drift=stop / max(1, steps),
        )

    async def _mixed(self, num_steps: int, mix: Mix) -> bool:
        """Let others change `local_P`, until `stop` is called; tell whether they have."""
        mixing = asyncio.ensure_future(mix(num_steps, self._buffers.local_P))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({mixing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            mixing.cancel()
            stopped.cancel()
            await asyncio.gather(mixing, stopped, return_exceptions=True)
        return not mixing.cancelled() and mixing.result()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around everything that a call of `train` does: `stop` shortens it, `wait_idle` waits."""
        self._idle.clear()
        self._stopped.clear()
        try:
            yield
        finally:
            self._idle.set()

    def stop(self) -> None:
        """Let the training under way end early, with what it has."""
        self._stopped.set()
        if not self._idle.is_set():
            self._stopping = asyncio.ensure_future(self._trainer.stop())

    async def wait_idle(self) -> None:
        """Stop, and return when it has ended."""
        self.stop()
        await self._idle.wait()

    async def _train(self, command: Train) -> Trained:
        try:
            trained = await self._trainer.train(command, self._note_step)
            if not np.isfinite(self._buffers.local_P).all():
                raise NonFiniteLoss("the parameters became infinite or NaN")
        except (OutOfDeviceMemory, ConfigError):
            raise
        except TrainingError as error:
            await self.lose(error, command.round)
            slots = error.slots if isinstance(error, WorkLost) else ()
            raise WorkLost(str(error), slots=slots) from error
        except BaseException:  # cancelled: the trainer has forgotten what it did
            self.forget()
            raise
        self._num_failures = 0
        self._has_inner_state = True
        self.is_fresh = False
        self.carried = self._told = union(self.carried, trained.slots)
        self.num_trained = count(self.carried)
        return trained

    def _note_step(self, step: StepDone) -> None:
        self.num_trained = step.steps
        self._on_step(step)

    def _note_speed(self, num_slots: int, seconds: float) -> None:
        if num_slots and seconds > 0:
            speed = num_slots / seconds
            weight = _SPEED_SMOOTHING if self.slots_per_s else 1.0
            self.slots_per_s += weight * (speed - self.slots_per_s)

    # --- moving along -------------------------------------------------------------------------

    def move(self, *, is_merged: bool = False) -> None:
        """Have the trainer add `local_P` to its parameters, as soon as its step is done.

        `is_merged` tells that this makes them the outer parameters, where nothing was trained
        since. Until `moved` returns, `local_P` must stay as it is.
        """
        if not self.is_fresh:
            self._moving = asyncio.create_task(self._move(is_merged))

    async def _move(self, is_merged: bool) -> None:
        try:
            await self._trainer.merge(is_merged=is_merged)
        except TrainingError as error:
            await self.lose(error)

    async def moved(self) -> None:
        """Return when the trainer has moved. Raises TrainingError where there is none any more."""
        if self._moving is not None:
            await asyncio.shield(self._moving)
            self._moving = None

    async def _end_move(self) -> None:
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)

    def settle(self, *, is_merged: bool) -> None:
        """The round is certified; `is_merged` tells whether it holds what it was told of."""
        if is_merged:
            self.carried = difference(self.carried, self._told)
        self._told = ()

    # --- losing it ----------------------------------------------------------------------------

    def forget(self) -> None:
        """There is no local work any more."""
        self.carried = self._told = ()
        self.num_trained = 0
        self.is_fresh = True

    async def lose(self, error: TrainingError, round_: int = -1) -> None:
        """It is gone: after a NaN nothing is broken, after the trainer's death start another one.

        Raises TrainingError after too many failures in a row; those of one round that slots are
        to blame for, which are left out of the next try, are one.
        """
        self.forget()
        is_blamed = isinstance(error, WorkLost) and bool(error.slots)
        if not is_blamed or self._failed_round != round_:
            self._num_failures += 1
        self._failed_round = round_ if is_blamed else -1
        if self._num_failures > MAX_FAILURES_IN_A_ROW:
            raise TrainingError(
                f"training failed {self._num_failures} times in a row, last: {error}"
            ) from error
        log.warning("the local work of this round is lost: %s", error)
        if isinstance(error, WorkLost):
            return
        await self._stack.aclose()
        await self._start_trainer()

    async def evaluate(self, max_tokens: int) -> Evaluated:
        """Measure the outer parameters. A trainer that dies over it is replaced once."""
        try:
            return await self._trainer.evaluate(max_tokens)
        except (OutOfDeviceMemory, WorkLost):
            raise
        except TrainingError as error:
            await self.lose(error)
            return await self._trainer.evaluate(max_tokens)


def joined(parts: Sequence[Trained]) -> Trained:
    """Several answers about the same work, one after the other, as one."""
    tokens = sum(part.tokens for part in parts)
    return Trained(
        round=parts[-1].round,
        slots=normalise(piece for part in parts for piece in part.slots),
        loss=sum(part.loss * part.tokens for part in parts) / max(1, tokens),
        tokens=tokens,
        seconds=sum(part.seconds for part in parts),
        idle_s=sum(part.idle_s for part in parts),
    )
