"""One peer's copy of a job's outer state, and the trainer that works on top of it.

Memory, in fp32 copies of the parameters: outer parameters and momentum, a spare of each (a staged
step, or the state before the last one, which joiners may still be fetching), the local work, and
two for the mirror of the inner optimizer: seven.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from zoonet.config.job import TrainingConfig
from zoonet.errors import (
    ConfigError,
    DigestMismatch,
    NonFiniteLoss,
    OutOfDeviceMemory,
    TrainingError,
    WorkLost,
)
from zoonet.exact import Vector
from zoonet.ranges import Ranges, count, difference, union
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import Layout
from zoonet.training.handle import Trainer
from zoonet.training.messages import Evaluated, StepDone, Train
from zoonet.training.outer import outer_step
from zoonet.training.state import chunk, chunk_digest, chunk_digests, num_chunks, root_digest

OpenTrainer = Callable[[], AbstractAsyncContextManager[Trainer]]
T = TypeVar("T")

MAX_FAILURES_IN_A_ROW: Final = 3
INLINE_PARAMETERS: Final = 1 << 18  # arithmetic on fewer stays on the event loop
_SPEED_SMOOTHING: Final = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out loss (nats a token) of the outer parameters after so many certified rounds."""

    num_rounds: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class ReplicaEvents:
    """What the role that runs a replica wants to know."""

    on_step: Callable[[StepDone], None]
    on_trained: Callable[[float, float], None]  # mean loss, tokens a second
    on_evaluated: Callable[[Evaluation], None]


class TrainingReplica:
    """Holds the state, trains on top of it, takes outer steps. Use `open`."""

    def __init__(
        self,
        spec: TrainingConfig,
        tokens_per_slot: int,
        buffers: SharedBuffers,
        open_trainer: OpenTrainer,
        events: ReplicaEvents,
    ) -> None:
        self.num_parameters = buffers.num_parameters
        self.slots_per_s = 0.0
        self.num_trained = 0
        self._spec = spec
        self._tokens_per_slot = tokens_per_slot
        self._buffers = buffers
        self._open_trainer = open_trainer
        self._events = events
        self._momentum_P = np.zeros(self.num_parameters, np.float32)
        self._spare_theta_P = np.empty(self.num_parameters, np.float32)
        self._spare_momentum_P = np.empty(self.num_parameters, np.float32)
        self._digests = chunk_digests(buffers.global_P, self._momentum_P)
        self._spare_digests: tuple[bytes, ...] = ()  # empty: the spare holds nothing whole
        self._is_staged = False
        self.carried: Ranges = ()  # local work: trained slots that no certified round holds
        self._told: Ranges = ()  # those of them whose work lies in `local_P`
        self._is_fresh = True  # the trainer has nothing of it, and starts from the outer parameters
        self._merging: asyncio.Task[None] | None = None
        self._has_inner_state = False
        self._num_failures = 0
        self._num_rounds = 0
        self._evaluate_after: int | None = None
        self._lock = asyncio.Lock()
        self._is_stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._trainer: Trainer | None = None
        self._stack = AsyncExitStack()
        self._stopping: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        spec: TrainingConfig,
        tokens_per_slot: int,
        initial_P: Vector,
        buffers: SharedBuffers,
        open_trainer: OpenTrainer,
        events: ReplicaEvents,
    ) -> AsyncIterator[TrainingReplica]:
        """Start from the job's initial parameters (P,), with a trainer ready.

        Raises TrainingError or ConfigError where the trainer cannot load the job.
        """
        buffers.global_P[:] = initial_P
        buffers.local_P[:] = initial_P
        replica = cls(spec, tokens_per_slot, buffers, open_trainer, events)
        try:
            async with replica._stack:
                await replica._start_trainer()
                try:
                    yield replica
                finally:
                    await replica._end_merge()
        finally:
            replica._release()

    def _release(self) -> None:
        """Let go of the memory: who asks later is told that no state is held here."""
        empty = np.empty(0, np.float32)
        self._momentum_P = self._spare_theta_P = self._spare_momentum_P = empty
        self._digests = self._spare_digests = ()

    async def _start_trainer(self) -> None:
        self._trainer = await self._stack.enter_async_context(self._open_trainer())

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors within the outer parameters, in order."""
        assert self._trainer is not None
        return self._trainer.layout

    @property
    def theta_P(self) -> Vector:
        """The outer parameters (P,). A view: copy what you keep."""
        return self._buffers.global_P

    @property
    def state_digest(self) -> bytes:
        """Digest (32 bytes) of the current state."""
        return root_digest(self._digests)

    # --- local work ---------------------------------------------------------------------------

    async def train(self, slots: Ranges, *, steps: int, num_done: int, num_planned: int) -> Ranges:
        """Train slots on top of the local work; see `zoonet.averaging.Replica.train`."""
        self._idle.clear()
        self._is_stopped = False
        try:
            await self._evaluate_if_due()
            await self._merged()
            command = Train(
                round=self._num_rounds,
                slots=difference(slots, self.carried),
                steps=0 if self._is_stopped else steps,
                num_carried=count(self.carried),
                tokens_done=num_done * self._tokens_per_slot,
                tokens_planned=num_planned * self._tokens_per_slot,
                is_fresh=self._is_fresh,
                has_inner_state=self._has_inner_state,
            )
            await self._checked_training(command)
        finally:
            self._idle.set()
        return self.carried

    async def _checked_training(self, command: Train) -> None:
        assert self._trainer is not None
        try:
            trained = await self._trainer.train(command, self._on_step)
            if not np.isfinite(self._buffers.local_P).all():
                raise NonFiniteLoss("the parameters became infinite or NaN")
        except (OutOfDeviceMemory, ConfigError):
            raise
        except TrainingError as error:
            await self._lose_work(error)
            raise WorkLost(str(error)) from error
        except BaseException:  # cancelled: the trainer has forgotten what it did
            self._forget_work()
            raise
        self._num_failures = 0
        self._has_inner_state = True
        self._is_fresh = False
        self.carried = self._told = union(self.carried, trained.slots)
        self.num_trained = count(self.carried)
        self._note_speed(count(trained.slots), trained.seconds)
        if trained.tokens:
            self._events.on_trained(trained.loss, trained.tokens / max(1e-9, trained.seconds))

    def _forget_work(self) -> None:
        self.carried = self._told = ()
        self.num_trained = 0
        self._is_fresh = True

    async def _lose_work(self, error: TrainingError) -> None:
        self._forget_work()
        await self._recover(error)

    async def _recover(self, error: TrainingError) -> None:
        """After a NaN nothing is broken; after the trainer's death start another one."""
        self._num_failures += 1
        if self._num_failures > MAX_FAILURES_IN_A_ROW:
            raise TrainingError(
                f"training failed {self._num_failures} times in a row, last: {error}"
            ) from error
        log.warning("the local work of this round is lost: %s", error)
        if isinstance(error, WorkLost):
            return
        await self._stack.aclose()
        await self._start_trainer()

    def _note_speed(self, num_slots: int, seconds: float) -> None:
        if num_slots and seconds > 0:
            speed = num_slots / seconds
            weight = _SPEED_SMOOTHING if self.slots_per_s else 1.0
            self.slots_per_s += weight * (speed - self.slots_per_s)

    def _on_step(self, step: StepDone) -> None:
        self.num_trained = step.steps
        self._events.on_step(step)

    def stop(self) -> None:
        """Let `train` return early, with what it has."""
        self._is_stopped = True
        if not self._idle.is_set() and self._trainer is not None:
            self._stopping = asyncio.ensure_future(self._trainer.stop())

    async def _wait_idle(self) -> None:
        self.stop()
        await self._idle.wait()

    async def pseudo_gradient(self) -> Vector:
        """Return theta_outer - theta_local (P,), as `train` has left it."""
        async with self._lock:
            theta_P, local_P = self._buffers.global_P, self._buffers.local_P
            return await self._compute(lambda: np.subtract(theta_P, local_P))

    async def drop_local(self) -> None:
        """Forget the local work."""
        await self._wait_idle()
        await self._merged()
        self._forget_work()

    # --- evaluation ---------------------------------------------------------------------------

    def evaluate_before_next_round(self, num_rounds: int) -> None:
        """Measure the outer parameters when training goes on; `num_rounds` names the result."""
        self._evaluate_after = num_rounds

    async def _evaluate_if_due(self) -> None:
        if self._evaluate_after is not None:
            num_rounds, self._evaluate_after = self._evaluate_after, None
            try:
                await self.evaluate(num_rounds)
            except WorkLost as error:  # a look at the model costs no work
                log.warning("not evaluated: %s", error)

    async def evaluate(self, num_rounds: int) -> Evaluation:
        """Measure the outer parameters on `eval_tokens` held-out tokens.

        A trainer that dies over it is replaced once; the local work is lost with it. Raises
        TrainingError.
        """
        async with self._lock:
            measured = await self._measure()
        evaluation = Evaluation(num_rounds, measured.loss, measured.tokens)
        self._events.on_evaluated(evaluation)
        return evaluation

    async def _measure(self) -> Evaluated:
        assert self._trainer is not None
        try:
            return await self._trainer.evaluate(self._spec.eval_tokens)
        except (OutOfDeviceMemory, WorkLost):
            raise
        except TrainingError as error:
            await self._lose_work(error)
            return await self._trainer.evaluate(self._spec.eval_tokens)

    # --- the outer step -----------------------------------------------------------------------

    async def stage(self, mean_P: Vector) -> bytes:
        """Take the outer step into the spare copy and return the digest of what it would be."""
        async with self._lock:
            self._is_staged = False
            self._spare_digests = ()
            digests = await self._compute(lambda: self._step_into_spare(mean_P))
            self._spare_digests = digests
            self._is_staged = True
            return root_digest(digests)

    def _step_into_spare(self, mean_P: Vector) -> tuple[bytes, ...]:
        outer_step(
            self._buffers.global_P,
            self._momentum_P,
            mean_P,
            lr=self._spec.outer_lr,
            momentum=self._spec.outer_momentum,
            out=(self._spare_theta_P, self._spare_momentum_P),
        )
        return chunk_digests(self._spare_theta_P, self._spare_momentum_P)

    async def commit(self, state: bytes, *, is_merged: bool) -> bool:
        """Make the staged copy the state, if it is that one; see `zoonet.averaging.Replica`."""
        await self._wait_idle()
        async with self._lock:
            self._num_rounds += 1
            if not self._is_staged or root_digest(self._spare_digests) != state:
                return False
            self._is_staged = False
            await self._merged()
            await self._compute(lambda: self._swap(is_merged))
        if is_merged:
            self.carried = difference(self.carried, self._told)
        self._told = ()
        if not self._is_fresh:
            self._merging = asyncio.create_task(self._merge(is_merged))
        return True

    def _swap(self, is_merged: bool) -> None:
        """Make the spare the state, and `local_P` what the trainer has to move by.

        What it has trained since it told of its work stays on top of the new parameters; so does
        that work itself, where the round does not hold it.
        """
        theta_P, local_P = self._buffers.global_P, self._buffers.local_P
        np.subtract(self._spare_theta_P, local_P if is_merged else theta_P, out=local_P)
        self._take_spare()

    def _take_spare(self) -> None:
        theta_P = self._buffers.global_P
        old_theta_P = theta_P.copy()
        theta_P[:] = self._spare_theta_P
        self._spare_theta_P = old_theta_P
        self._momentum_P, self._spare_momentum_P = self._spare_momentum_P, self._momentum_P
        self._digests, self._spare_digests = self._spare_digests, self._digests

    async def _merge(self, is_merged: bool) -> None:
        """Have the trainer move on; it may be in the middle of a step."""
        assert self._trainer is not None
        try:
            await self._trainer.merge(is_merged=is_merged)
        except TrainingError as error:
            await self._lose_work(error)

    async def _end_merge(self) -> None:
        if self._merging is not None:
            self._merging.cancel()
            await asyncio.gather(self._merging, return_exceptions=True)

    async def _merged(self) -> None:
        """Return when the trainer has moved on. Raises TrainingError where it cannot any more."""
        if self._merging is not None:
            await asyncio.shield(self._merging)
            self._merging = None

    # --- handing the state to joiners ---------------------------------------------------------

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        """Digests of the chunks of a state that is held here, else None."""
        if self._digests and root_digest(self._digests) == state:
            return list(self._digests)
        if self._spare_digests and root_digest(self._spare_digests) == state:
            return list(self._spare_digests)
        return None

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        """One chunk of that state, or None."""
        if not 0 <= index < num_chunks(self.num_parameters):
            return None
        if self._digests and root_digest(self._digests) == state:
            return chunk(self._buffers.global_P, self._momentum_P, index).tobytes()
        if self._spare_digests and root_digest(self._spare_digests) == state:
            return chunk(self._spare_theta_P, self._spare_momentum_P, index).tobytes()
        return None

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        """Replace the state by one that was fetched; the local work is dropped.

        Raises DigestMismatch where the chunks do not make up that state.
        """
        await self._wait_idle()
        async with self._lock:
            self._is_staged = False
            self._spare_digests = ()
            adopted = await self._compute(lambda: self._fill_spare(chunks))
            if root_digest(adopted) != state or list(adopted) != digests:
                raise DigestMismatch("", "chunks that do not make up the state")
            self._spare_digests = adopted
            await self._merged()
            await self._compute(self._take_spare)
        self._forget_work()

    def _fill_spare(self, chunks: list[bytes]) -> tuple[bytes, ...]:
        if len(chunks) != num_chunks(self.num_parameters):
            raise DigestMismatch("", f"{len(chunks)} chunks")
        found = []
        for index, raw in enumerate(chunks):
            target = chunk(self._spare_theta_P, self._spare_momentum_P, index)
            if len(raw) != target.nbytes:
                raise DigestMismatch("", f"chunk {index} of {len(raw)} bytes")
            target[:] = np.frombuffer(raw, np.float32)
            found.append(chunk_digest(target))
        return tuple(found)

    async def _compute(self, function: Callable[[], T]) -> T:
        """Run arithmetic to its end, in a thread where there is much of it.

        Cancellation waits for the thread, so that nothing writes to the buffers afterwards.
        """
        if self.num_parameters < INLINE_PARAMETERS:
            return function()
        working = asyncio.ensure_future(asyncio.to_thread(function))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise
