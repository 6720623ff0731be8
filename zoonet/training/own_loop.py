"""The trainer that is somebody's own training loop, in a thread of its own.

Two threads meet here. The network's event loop calls `train`, `merge` and `stop` as it would of any
`Trainer`; the loop's thread asks for one slot after the other (`next_slot`) and says when its
optimizer has stepped (`stepped`). The parameters belong to the loop's thread: what the network
asks for is done there, between two steps, so no step ever sees them change.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from zoonet.errors import ConfigError, NonFiniteLoss, TrainingError
from zoonet.exact import Vector
from zoonet.ranges import Ranges, difference, normalise
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import Layout
from zoonet.training.handle import OnStep
from zoonet.training.messages import Evaluated, Merge, Sample, StepDone, Train, Trained
from zoonet.training.session import each
from zoonet.training.vector import ModelVector

T = TypeVar("T")

REPORT_INTERVAL_S: Final = 0.25
MAX_UNSTEPPED: Final = 1024  # batches in a row without an optimizer step: it is another optimizer


@dataclass(slots=True)
class _Request:
    """What the network waits for; answered from the loop's thread."""

    command: Train | Merge
    on_step: OnStep = lambda _: None  # called in the loop's thread
    answer: Future[Trained | None] = field(default_factory=Future)
    is_taken_on: bool = False


class OwnLoop:
    """The `Trainer` Protocol for the network's event loop, slots for the loop's thread."""

    def __init__(
        self,
        vector: ModelVector,
        batch_size: int,
        *,
        forget_moments: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`forget_moments` resets the optimizer after its steps have led to NaN or infinity."""
        self.device = str(vector.parameters[0].device)
        self.layout: Layout = vector.layout
        self._vector = vector
        self._batch_size = batch_size
        self._forget_moments = forget_moments
        self._now = now
        self._changed = threading.Condition()
        self._one_at_a_time = asyncio.Lock()
        # Changed under `_changed`, by either thread.
        self._request: _Request | None = None
        self._is_serving = False  # the loop's thread is at the parameters and the buffers
        self._is_stopped = False
        self._must_be_fresh = True
        self._failure: BaseException | None = None
        self._final_P: Vector | None = None
        self._is_concluded = False
        # The loop's thread alone.
        self._buffers: SharedBuffers
        self._command: Train | None = None
        self._queue: deque[int] = deque()
        self._in_hand: list[int] = []  # handed out, and not stepped yet
        self._trained: list[int] = []  # since the last answer
        self._is_moved = False  # by steps since the last answer
        self._num_unstepped = 0
        self._answered_at = now()
        self._idle_s = 0.0  # since then
        self._told_at = now()
        self._told_steps = 0

    @asynccontextmanager
    async def open(self, buffers: SharedBuffers) -> AsyncIterator[Self]:
        """Work on these buffers while the block runs; a later block may bring others."""
        with self._changed:
            self._buffers = buffers
            self._must_be_fresh = True
        yield self

    # --- the network's side -------------------------------------------------------------------

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        loop = asyncio.get_running_loop()

        def tell(step: StepDone) -> None:
            if on_step is not None:
                loop.call_soon_threadsafe(on_step, step)

        trained = await self._ask(_Request(command, tell))
        assert trained is not None
        return trained

    async def merge(self, *, is_merged: bool) -> None:
        await self._ask(_Request(Merge(is_merged=is_merged)))

    async def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        raise TrainingError("a loop of one's own is evaluated by its owner")

    async def sample(self, request: Sample) -> str:
        raise ConfigError("a loop of one's own is sampled by its owner")

    async def _ask(self, request: _Request) -> Trained | None:
        async with self._one_at_a_time:
            answer = asyncio.wrap_future(request.answer)
            with self._changed:
                if self._failure is not None:
                    raise _over(self._failure)
                self._request = request
                self._is_stopped = False
                self._changed.notify_all()
            try:
                return await asyncio.shield(answer)
            except asyncio.CancelledError:
                await self._withdraw(answer)
                raise

    async def _withdraw(self, answer: asyncio.Future[Trained | None]) -> None:
        """Nobody waits for the answer any more: leave the buffers alone from now on."""
        with self._changed:
            is_serving = self._is_serving
            if not is_serving:
                self._request = None
                self._must_be_fresh = True
        if is_serving and not answer.done():
            await asyncio.wait({answer})
            answer.exception()  # it is of no interest any more

    def conclude(self, final_P: Vector) -> None:
        """Every slot is certified: hand these parameters (P,) to the loop and let it end."""
        with self._changed:
            self._final_P = final_P
            self._is_concluded = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Raise this in the loop's thread as soon as it asks for anything, and answer nothing more.

        What the network waits for ends with TrainingError.
        """
        with self._changed:
            self._failure = self._failure or error
            request = None if self._is_serving else self._request
            if request is not None:
                self._request = None
            self._changed.notify_all()
        if request is not None:
            request.answer.set_exception(_over(error))

    # --- the loop's side ----------------------------------------------------------------------

    @property
    def is_concluded(self) -> bool:
        """Whether every slot of the run is certified."""
        return self._is_concluded

    def next_slot(self) -> int | None:
        """Block until there is a slot to train and return it; None once the run is finished.

        The model then holds its final parameters. Raises what has ended this peer's part in it.
        """
        self._check_stepping()
        while True:
            if (slot := self.poll_slot()) is not None:
                return slot
            if self._is_concluded:
                return None
            self._wait(lambda: self._is_asked or self._is_concluded or self._failure is not None)

    def poll_slot(self) -> int | None:
        """Return the next slot if there is one, else do what the network asks for."""
        self._raise_failure()
        if not (self._in_hand and self._queue):  # else in the middle of accumulating a gradient
            if not self._queue:
                # What is in hand counts: its gradient is part of the loop's next step.
                self._trained += self._in_hand
                self._in_hand = []
            self._settle()
        if self._is_concluded:
            self._end()
            return None
        if not self._queue:
            return None
        slot = self._queue.popleft()
        self._in_hand.append(slot)
        self._num_unstepped += 1
        return slot

    @property
    def upcoming(self) -> Iterator[int]:
        """The slots that come next, unless the network has other wishes."""
        return iter(self._queue)

    def stepped(self) -> None:
        """The optimizer has stepped on every batch handed out since it last did."""
        self._num_unstepped = 0
        if not self._is_concluded:
            self._trained += self._in_hand
            self._in_hand = []
            self._is_moved = True
            self._tell()
            self._settle()

    def put_back(self) -> None:
        """The loop was left before the optimizer has stepped: hand the same slots out again."""
        self._queue.extendleft(reversed(self._in_hand))
        self._in_hand = []

    def wait_for(self, future: Future[T]) -> T:
        """Return the future's result, and do what the network asks for while it is awaited."""

        def wake(_: Future[T]) -> None:
            with self._changed:
                self._changed.notify_all()

        future.add_done_callback(wake)
        while not future.done():
            self._settle()
            self._wait(lambda: self._is_asked or future.done())
        return future.result()

    def _wait(self, is_due: Callable[[], bool]) -> None:
        began = self._now()
        with self._changed:
            self._changed.wait_for(is_due)
        self._idle_s += self._now() - began

    @property
    def _is_asked(self) -> bool:
        """Whether there is something to do for the network between two steps."""
        request = self._request
        return request is not None and (not request.is_taken_on or self._is_due)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_stepping(self) -> None:
        if self._num_unstepped > MAX_UNSTEPPED:
            raise ConfigError(
                f"{self._num_unstepped} batches were trained on without a step of the optimizer; "
                "the loop must call step() of the optimizer that was prepared"
            )

    def _settle(self) -> None:
        """Do what the network asks for, as far as that is possible between two steps."""
        with self._changed:
            request = self._request
            self._is_serving = request is not None
        if request is None:
            return
        try:
            answer = self._serve(request)
        except TrainingError as error:
            self._abandon()
            self._let_go()
            request.answer.set_exception(error)
            return
        is_answered = answer is not None or isinstance(request.command, Merge)
        self._let_go(is_answered=is_answered)
        if is_answered:
            request.answer.set_result(answer)

    def _let_go(self, *, is_answered: bool = True) -> None:
        """The buffers are the network's again."""
        with self._changed:
            self._is_serving = False
            if is_answered:
                self._request = None

    def _serve(self, request: _Request) -> Trained | None:
        if isinstance(request.command, Merge):
            self._merge(request.command)
            return None
        if not request.is_taken_on:
            self._take_on(request.command)
            request.is_taken_on = True
        return self._answer(request.command) if self._is_due else None

    def _merge(self, command: Merge) -> None:
        if command.is_merged and not self._is_moved:
            self._vector.load_(self._buffers.global_P)
        else:
            self._vector.shift_(self._buffers.local_P)

    def _take_on(self, command: Train) -> None:
        if command.is_fresh or self._must_be_fresh or self._command is None:
            self._vector.load_(self._buffers.global_P)
            self._must_be_fresh = self._is_moved = False
            self._trained = []
            wanted = set(each(command.slots))
            self._in_hand = [slot for slot in self._in_hand if slot in wanted]
        elif command.takes_local:
            self._vector.load_(self._buffers.local_P)
        self._command = command
        known = _ranges([*self._trained, *self._in_hand])
        self._queue = deque(each(difference(command.slots, known)))
        self._told_steps, self._told_at = len(self._trained), self._now()

    @property
    def _is_due(self) -> bool:
        command = self._command
        if command is None or self._is_stopped:
            return True
        is_empty = not self._queue and not self._in_hand
        return is_empty or len(self._trained) + command.num_carried >= command.steps

    def _answer(self, command: Train) -> Trained:
        if not self._vector.is_finite():
            self._forget_moments()
            raise NonFiniteLoss("a step made parameters infinite; lower the learning rate")
        self._vector.store(self._buffers.local_P)
        now = self._now()
        trained = Trained(
            round=command.round,
            slots=_ranges(self._trained),
            loss=0.0,
            tokens=len(self._trained) * self._batch_size,
            seconds=max(0.0, now - self._answered_at - self._idle_s),
            idle_s=self._idle_s,
        )
        self._answered_at, self._idle_s = now, 0.0
        self._trained = []
        self._is_moved = False
        return trained

    def _abandon(self) -> None:
        self._command = None
        self._queue.clear()
        self._trained = []
        self._must_be_fresh = True

    def _end(self) -> None:
        """The run is finished: the model becomes what all peers have, to the bit."""
        self._queue.clear()
        self._in_hand = []
        if self._final_P is not None:
            self._vector.load_(self._final_P)
            self._final_P = None

    def _tell(self) -> None:
        """Tell of a command under way, about four times a second."""
        request, now = self._request, self._now()
        if request is None or not request.is_taken_on or self._command is None:
            return
        if now - self._told_at < REPORT_INTERVAL_S:
            return
        num_new = len(self._trained) - self._told_steps
        speed = num_new * self._batch_size / max(1e-9, now - self._told_at)
        self._told_steps, self._told_at = len(self._trained), now
        steps = len(self._trained) + self._command.num_carried
        request.on_step(StepDone(steps=steps, of=self._command.steps, loss=0.0, tokens_per_s=speed))


def _over(error: BaseException) -> TrainingError:
    return TrainingError(f"the training loop has ended: {error}")


def _ranges(slots: list[int]) -> Ranges:
    return normalise((slot, slot + 1) for slot in slots)
