"""What a trainer has before it: slots to train, and what of them it has not told of yet.

Both kinds of trainer play it, each in its own time: the one in a process of its own and the one on
the event loop. No pipe and no waiting here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from zoonet.errors import TrainingError, UnreadableSlot
from zoonet.ranges import Ranges, count, difference, normalise
from zoonet.training.buffers import SharedBuffers
from zoonet.training.drift import share_after
from zoonet.training.messages import StepDone, Train, Trained
from zoonet.training.session import TrainingSession, each, position

REPORT_INTERVAL_S: Final = 0.25


class Workload:
    """Slots that are trained one after the other, on top of each other.

    `take_on` what a Train asks for, `step` until `is_due`, then `report`; afterwards `step` may go
    on as long as there `is_more`.
    """

    def __init__(
        self, session: TrainingSession, buffers: SharedBuffers, now: Callable[[], float]
    ) -> None:
        self._session = session
        self._buffers = buffers
        self._now = now
        self._command: Train | None = None
        self._slots: Iterator[int] = iter(())
        self._num_left = 0
        self._trained: list[int] = []  # since the last report
        self._is_moved = False  # by steps since the last report
        self._failure: TrainingError | None = None
        self._reported_at = now()
        self._idle_since: float | None = now()
        self._idle_s = 0.0  # since the last report
        self._aside_s = 0.0
        self._loss_sum = 0.0
        self._num_in_loss = 0  # steps whose loss is in that sum
        self._told_steps = 0
        self._told_at = now()

    # --- what there is to do ------------------------------------------------------------------

    def take_on(self, command: Train) -> None:
        """Train these slots from now on. Raises what went wrong since the last report."""
        failure, self._failure = self._failure, None
        if command.is_fresh or self._command is None:
            inner_N = self._buffers.inner_N if command.has_inner_state else None
            self._session.begin(self._buffers.global_P, inner_N, self._buffers.momentum_P)
            self._trained = []
            self._is_moved = False
            self._loss_sum = self._num_in_loss = 0
            self._start_clock()  # what was lost says nothing of the speed
        elif failure is not None:
            raise failure
        elif command.takes_local:
            self._session.go_over(self._buffers.local_P)
        left = difference(command.slots, self._told())
        self._command = command
        self._slots = each(left)
        self._num_left = count(left)
        if self._num_left:
            self._note_idle()
        self._told_steps, self._told_at = len(self._trained), self._now()

    def _start_clock(self) -> None:
        self._reported_at = self._now()
        self._idle_s = self._aside_s = 0.0
        self._idle_since = self._now()

    def abandon(self) -> None:
        """Train nothing more; the next command starts anew, whatever it says."""
        self._command = None
        self._rest()

    def _rest(self) -> None:
        if self._num_left:
            self._num_left = 0
            self._idle_since = self._now()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile is neither training nor idling."""
        began = self._now()
        try:
            yield
        finally:
            self._aside_s += self._now() - began

    @property
    def is_more(self) -> bool:
        """Tell whether there is a slot left to train."""
        return self._num_left > 0

    @property
    def is_due(self) -> bool:
        """Tell whether the command is to be answered."""
        return not self._num_left or self.num_steps >= self._steps

    @property
    def num_steps(self) -> int:
        """Slots of local work trained so far, those told of before among them."""
        return len(self._trained) + (self._command.num_carried if self._command else 0)

    @property
    def _steps(self) -> int:
        return self._command.steps if self._command else 0

    # --- doing it -----------------------------------------------------------------------------

    def step(self) -> None:
        """Train the next slot. Raises OutOfDeviceMemory, or UnreadableSlot with all there are."""
        assert self._command is not None
        num_left = self._steps - self.num_steps
        self._step(share_after(self._session.drift, self._command.drift, num_left))

    def _step(self, drift: float) -> None:
        assert self._command is not None
        slot = next(self._slots)
        where = position(self._command, self.num_steps, self._session.spec.tokens)
        try:
            self._session.step(slot, where, drift)
        except UnreadableSlot as error:
            raise UnreadableSlot(str(error), slots=self._unreadable_from(slot)) from error
        self._trained.append(slot)
        self._is_moved = True
        self._num_left -= 1
        if not self._num_left:
            self._idle_since = self._now()

    def _unreadable_from(self, slot: int) -> Ranges:
        """All that cannot be read of what is left, so that the work is lost but once."""
        found = [slot]
        for later in self._slots:
            try:
                self._session.read(later)
            except UnreadableSlot:
                found.append(later)
        return normalise((one, one + 1) for one in found)

    def step_ahead(self) -> None:
        """Train the next slot; whatever goes wrong is told when the next command comes.

        It stays where it is as to the outer momentum: of the next step nothing is known yet.
        """
        try:
            self._step(self._session.drift)
        except TrainingError as error:
            self._failure = error
            self._rest()

    def report(self) -> Trained:
        """Write theta_local and the inner state down, and tell what was trained.

        Raises NonFiniteLoss or OutOfDeviceMemory, and then has written nothing.
        """
        assert self._command is not None
        self._take_loss()
        self._session.finish_round(self._buffers.local_P, self._buffers.inner_N)
        is_idle = self._idle_since is not None
        self._note_idle()
        now = self._now()
        trained = Trained(
            round=self._command.round,
            slots=self._told(),
            loss=self._loss_sum / max(1, self._num_in_loss),
            tokens=len(self._trained) * self._session.tokens_per_step,
            seconds=max(0.0, now - self._reported_at - self._idle_s - self._aside_s),
            idle_s=self._idle_s,
        )
        self._reported_at = now
        self._idle_since = now if is_idle else None
        self._trained = []
        self._is_moved = False
        self._idle_s = self._aside_s = self._loss_sum = 0.0
        self._num_in_loss = 0
        return trained

    def merge(self, *, is_merged: bool) -> None:
        """Move on to a certified round: see `zoonet.training.messages.Merge`."""
        if is_merged and not self._is_moved:
            self._session.reload(self._buffers.global_P, self._buffers.momentum_P)
        else:
            self._session.shift(self._buffers.local_P, self._buffers.momentum_P)

    # --- telling of it ------------------------------------------------------------------------

    def progress(self) -> StepDone | None:
        """What to tell of a command under way, about four times a second. Raises NonFiniteLoss."""
        now = self._now()
        if now - self._told_at < REPORT_INTERVAL_S or not self._trained:
            return None
        loss = self._take_loss()
        num_new = len(self._trained) - self._told_steps
        tokens_per_s = num_new * self._session.tokens_per_step / max(1e-9, now - self._told_at)
        self._told_steps, self._told_at = len(self._trained), now
        return StepDone(steps=self.num_steps, of=self._steps, loss=loss, tokens_per_s=tokens_per_s)

    def _take_loss(self) -> float:
        num_new = len(self._trained) - self._num_in_loss
        loss = self._session.take_loss()
        self._loss_sum += loss * num_new
        self._num_in_loss += num_new
        return loss

    def _told(self) -> Ranges:
        return normalise((slot, slot + 1) for slot in self._trained)

    def _note_idle(self) -> None:
        if self._idle_since is not None:
            self._idle_s += self._now() - self._idle_since
        self._idle_since = None
