"""One peer's copy of a job's outer state, and the trainer that works on top of it.

Memory, in fp32 copies of the parameters: outer parameters and momentum, a spare of each (a staged
step, or the state before the last one, which joiners may still be fetching), the local work, and
two for the mirror of the inner optimizer: seven. The contribution to a round is an eighth. With
`outer_momentum_spread` the trainer is shown a copy of the momentum: a ninth.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from zoonet.config.job import TrainingConfig
from zoonet.errors import DigestMismatch, WorkLost
from zoonet.exact import Vector
from zoonet.ranges import Ranges
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import Layout
from zoonet.training.local import LocalWork, Mix, OpenTrainer, Schedule
from zoonet.training.messages import StepDone
from zoonet.training.outer import outer_step
from zoonet.training.state import chunk, chunk_digest, chunk_digests, num_chunks, root_digest

T = TypeVar("T")

INLINE_PARAMETERS: Final = 1 << 18  # arithmetic on fewer stays on the event loop

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
        work: LocalWork,
        events: ReplicaEvents,
    ) -> None:
        self.num_parameters = buffers.num_parameters
        self._spec = spec
        self._tokens_per_slot = tokens_per_slot
        self._buffers = buffers
        self._work = work
        self._events = events
        self._momentum_P = np.zeros(self.num_parameters, np.float32)
        self._spare_theta_P = np.empty(self.num_parameters, np.float32)
        self._spare_momentum_P = np.empty(self.num_parameters, np.float32)
        self._digests = chunk_digests(buffers.global_P, self._momentum_P)
        self._spare_digests: tuple[bytes, ...] = ()  # empty: the spare holds nothing whole
        self._is_staged = False
        self._num_rounds = 0
        self._evaluate_after: int | None = None
        self._lock = asyncio.Lock()

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
        del initial_P  # this frame stays for as long as the replica is open
        async with LocalWork.open(buffers, open_trainer, events.on_step) as work:
            replica = cls(spec, tokens_per_slot, buffers, work, events)
            try:
                yield replica
            finally:
                replica._release()

    def _release(self) -> None:
        """Let go of the memory: who asks later is told that no state is held here."""
        empty = np.empty(0, np.float32)
        self._momentum_P = self._spare_theta_P = self._spare_momentum_P = empty
        self._digests = self._spare_digests = ()

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors within the outer parameters, in order."""
        return self._work.trainer.layout

    @property
    def theta_P(self) -> Vector:
        """The outer parameters (P,). A view: copy what you keep."""
        return self._buffers.global_P

    async def outer_parameters(self) -> Vector:
        """Return a copy of the outer parameters (P,), all of one round."""
        async with self._lock:
            return await self._compute(self._buffers.global_P.copy)

    @property
    def state_digest(self) -> bytes:
        """Digest (32 bytes) of the current state."""
        return root_digest(self._digests)

    # --- local work ---------------------------------------------------------------------------

    @property
    def carried(self) -> Ranges:
        """Trained slots that no certified round holds, as last told of."""
        return self._work.carried

    @property
    def num_trained(self) -> int:
        """Slots of local work trained so far."""
        return self._work.num_trained

    @property
    def slots_per_s(self) -> float:
        """Measured training speed, 0 while unknown."""
        return self._work.slots_per_s

    async def train(
        self,
        slots: Ranges,
        *,
        steps: int,
        num_done: int,
        num_planned: int,
        stops: Sequence[int] = (),
        mix: Mix | None = None,
    ) -> Ranges:
        """Train slots on top of the local work; see `zoonet.averaging.Replica.train`."""
        with self._work.busy():
            await self._evaluate_if_due()
            trained = await self._work.train(
                slots,
                steps=steps,
                stops=stops,
                mix=mix,
                schedule=Schedule(
                    round=self._num_rounds,
                    tokens_done=num_done * self._tokens_per_slot,
                    tokens_planned=num_planned * self._tokens_per_slot,
                ),
            )
        if trained.tokens:
            self._events.on_trained(trained.loss, trained.tokens / max(1e-9, trained.seconds))
        return self.carried

    def stop(self) -> None:
        """Let `train` return early, with what it has."""
        self._work.stop()

    async def pseudo_gradient(self) -> Vector:
        """Return theta_outer - theta_local (P,), as `train` has left it."""
        async with self._lock:
            theta_P, local_P = self._buffers.global_P, self._buffers.local_P
            return await self._compute(lambda: np.subtract(theta_P, local_P))

    async def drop_local(self) -> None:
        """Forget the local work."""
        await self._work.wait_idle()
        await self._work.moved()
        self._work.forget()

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
            measured = await self._work.evaluate(self._spec.eval_tokens)
        evaluation = Evaluation(num_rounds, measured.loss, measured.tokens)
        self._events.on_evaluated(evaluation)
        return evaluation

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
        await self._work.wait_idle()
        async with self._lock:
            self._num_rounds += 1
            if not self._is_staged or root_digest(self._spare_digests) != state:
                return False
            self._is_staged = False
            await self._work.moved()
            await self._compute(lambda: self._swap(is_merged))
            self._work.settle(is_merged=is_merged)
            self._work.move(is_merged=is_merged)
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
        if self._spec.outer_momentum_spread:
            self._buffers.momentum_P[:] = self._momentum_P

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
        await self._work.wait_idle()
        async with self._lock:
            self._is_staged = False
            self._spare_digests = ()
            adopted = await self._compute(lambda: self._fill_spare(chunks))
            if root_digest(adopted) != state or list(adopted) != digests:
                raise DigestMismatch("", "chunks that do not make up the state")
            self._spare_digests = adopted
            await self._work.moved()
            await self._compute(self._take_spare)
        self._work.forget()

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
