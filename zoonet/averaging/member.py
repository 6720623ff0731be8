"""A member's side of one round: get ready, train, average, vote."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from msgspec import msgpack

from zoonet.averaging.butterfly import Averager
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.messages import (
    Attempt,
    Beat,
    Busy,
    Done,
    Elsewhere,
    Failed,
    FromCoordinator,
    FromMember,
    Planned,
    Ready,
    Round,
    RoundResult,
    Start,
    Stop,
    Voted,
    decode_from_coordinator,
)
from zoonet.averaging.replica import Replica
from zoonet.clock import Clock
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, RoundFailed, WorkLost
from zoonet.ranges import Ranges, count, difference, is_normal, overlaps, union
from zoonet.records import verify
from zoonet.transport import Stream

log = logging.getLogger(__name__)


class StandsElsewhere(RoundFailed):
    """The coordinator has another chain."""


class NotInvited(RoundFailed):
    """The round is under way without this peer; `plan` says with whom."""

    def __init__(self, plan: Round) -> None:
        super().__init__(f"round {plan.index} is under way without this peer")
        self.plan = plan


@dataclass(slots=True)
class LocalWork:
    """Slots that the replica has trained and that no certified round holds yet."""

    carried: Ranges = ()


@dataclass(frozen=True, slots=True)
class MemberEvents:
    """What the outside wants to know of, or must do, while a round runs."""

    on_plan: Callable[[Round], Awaitable[None]]  # bring the replica to the round's parent state
    on_phase: Callable[[str], None]
    on_staged: Callable[[RoundResult], Awaitable[None]]  # vote for it


class Member:
    """Follows one coordinator through one round. Used once."""

    def __init__(
        self,
        peer_id: PeerId,
        clock: Clock,
        config: RoundsConfig,
        replica: Replica,
        averager: Averager,
        work: LocalWork,
        events: MemberEvents,
    ) -> None:
        self._peer_id = peer_id
        self._clock = clock
        self._config = config
        self._replica = replica
        self._averager = averager
        self._work = work
        self._events = events
        self._attempts: asyncio.Queue[Attempt] = asyncio.Queue()
        self._lock = asyncio.Lock()
        self.plan: Round | None = None
        self.record = b""  # the plan as its coordinator signed it

    async def follow(
        self,
        stream: Stream,
        ready: Ready,
        *,
        num_done: int,
        free: Ranges,
        plan_timeout_s: float | None,
    ) -> None:
        """Play the round to the end of the stream or until cancelled.

        The caller cancels it when the round's certificate is there. Raises RoundFailed (or a
        subclass of it), TransportError or TrainingError.
        """
        await self._say(stream, ready)
        try:
            async with asyncio.timeout(plan_timeout_s):
                self.plan = await self._receive_plan(stream, ready)
        except TimeoutError as error:
            raise RoundFailed(f"no plan after {plan_timeout_s} s") from error
        if self._peer_id not in (*self.plan.members, *self.plan.joiners):
            raise NotInvited(self.plan)
        async with asyncio.TaskGroup() as tasks:
            listener = tasks.create_task(self._listen(stream))
            beater = tasks.create_task(self._beat(stream))
            await self._events.on_plan(self.plan)
            if self._peer_id in self.plan.members:
                await self._train(stream, num_done, free)
            self._events.on_phase("averaging")
            await self._average(stream)
            listener.cancel()
            beater.cancel()

    # --- talking ------------------------------------------------------------------------------

    async def _say(self, stream: Stream, message: FromMember) -> None:
        async with self._lock:
            await stream.send(msgpack.encode(message))

    async def _hear(self, stream: Stream) -> FromCoordinator:
        try:
            async with asyncio.timeout(self._config.silence_s):
                frame = await stream.receive(256 * 1024)
            return decode_from_coordinator(frame)
        except TimeoutError as error:
            raise RoundFailed(
                f"the coordinator {short(stream.peer_id)} has been silent for "
                f"{self._config.silence_s:.0f} s"
            ) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolViolation(stream.peer_id, f"a malformed message: {error}") from error

    async def _receive_plan(self, stream: Stream, ready: Ready) -> Round:
        while True:
            beats = asyncio.create_task(self._beat(stream))
            try:
                message = await self._hear(stream)
            finally:
                beats.cancel()
            match message:
                case Planned(record=raw):
                    plan = self._check_plan(stream.peer_id, raw, ready)
                    self.record = raw
                    return plan
                case Elsewhere():
                    raise StandsElsewhere("the coordinator stands at another head")
                case Busy(record=raw):
                    record = verify(raw, now=self._clock.now()).expect(Round)
                    raise NotInvited(record.body)
                case _:
                    continue

    def _check_plan(self, coordinator: PeerId, raw: bytes, ready: Ready) -> Round:
        record = verify(raw, now=self._clock.now()).expect(Round)
        plan: Round = record.body
        if record.author != coordinator:
            raise ProtocolViolation(coordinator, "a round that another peer planned")
        if (plan.job_id, plan.index, plan.parent) != (ready.job_id, ready.length, ready.head):
            raise ProtocolViolation(coordinator, "a plan of another round")
        taken: Ranges = ()
        for share in plan.leases:
            if not is_normal(share.slots) or overlaps(taken, share.slots):
                raise ProtocolViolation(coordinator, "a plan that leases a slot twice")
            taken = union(taken, share.slots)
        return plan

    async def _listen(self, stream: Stream) -> None:
        while True:
            match await self._hear(stream):
                case Stop():
                    self._replica.stop()
                case Start(attempt=attempt):
                    self._attempts.put_nowait(self._check_attempt(stream.peer_id, attempt))
                case _:
                    continue

    def _check_attempt(self, coordinator: PeerId, attempt: Attempt) -> Attempt:
        plan = self.plan
        assert plan is not None
        same = (plan.job_id, plan.index, plan.view, plan.parent)
        if (attempt.job_id, attempt.index, attempt.view, attempt.parent) != same:
            raise ProtocolViolation(coordinator, "an attempt of another round")
        peers = list(attempt.contributors)
        if not peers or peers != sorted(set(peers)) or not set(peers) <= set(plan.members):
            raise ProtocolViolation(coordinator, "an attempt with contributors that are no members")
        mine = next((s.slots for s in attempt.contributions if s.peer == self._peer_id), None)
        if mine is not None and mine != self._work.carried:
            raise ProtocolViolation(coordinator, "an attempt with other slots than were reported")
        for share in attempt.contributions:
            leased = plan.slots_of(PeerId(share.peer))
            if not share.slots or not is_normal(share.slots) or difference(share.slots, leased):
                raise ProtocolViolation(coordinator, "an attempt with slots that were not leased")
        return attempt

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(self._config.beat_s)
            await self._say(stream, Beat(num_slots=self._replica.num_trained))

    # --- working ------------------------------------------------------------------------------

    async def _train(self, stream: Stream, num_done: int, free: Ranges) -> None:
        assert self.plan is not None
        leased = self.plan.slots_of(self._peer_id)
        if difference(leased, free):
            raise ProtocolViolation(stream.peer_id, "a lease of slots that are done already")
        if difference(self._work.carried, leased):
            log.info("local work was not taken on; dropping slots=%d", count(self._work.carried))
            await self._replica.drop_local()
            self._work.carried = ()
        new = difference(leased, self._work.carried)
        if new:
            self._events.on_phase("training")
            planned = sum(count(share.slots) for share in self.plan.leases)
            await self._train_slots(new, num_done, planned)
        await self._say(stream, Done(slots=self._work.carried))

    async def _train_slots(self, slots: Ranges, num_done: int, num_planned: int) -> None:
        """Train, and where the round ends meanwhile keep what has been trained until then."""
        training = asyncio.ensure_future(
            self._replica.train(slots, num_done=num_done, num_planned=num_planned)
        )
        try:
            await asyncio.shield(training)
        except asyncio.CancelledError:
            self._replica.stop()
            await self._keep(training)
            raise
        except WorkLost:
            pass  # `_keep` says so
        await self._keep(training)

    async def _keep(self, training: asyncio.Future[Ranges]) -> None:
        try:
            self._work.carried = union(self._work.carried, await training)
        except WorkLost as error:
            log.warning("this round's local work is lost: %s", error)
            await self._replica.drop_local()
            self._work.carried = ()

    async def _average(self, stream: Stream) -> None:
        """Follow one attempt after the other; a newer one ends the one under way."""
        attempt = await self._attempts.get()
        while True:
            following = asyncio.create_task(self._follow_attempt(stream, attempt))
            newer = asyncio.create_task(self._attempts.get())
            try:
                await asyncio.wait({following, newer}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
                attempt = await newer
            finally:
                for task in (following, newer):
                    task.cancel()
                await asyncio.gather(following, newer, return_exceptions=True)

    async def _follow_attempt(self, stream: Stream, attempt: Attempt) -> None:
        assert self.plan is not None
        contributes = self._peer_id in attempt.contributors
        contribution_P = await self._replica.pseudo_gradient() if contributes else None
        try:
            mean_P = await self._averager.average(attempt, contribution_P)
        except RoundFailed as error:
            log.info("attempt=%d failed: %s", attempt.number, error)
            await self._say(
                stream, Failed(number=attempt.number, missing=tuple(sorted(error.missing)))
            )
            return
        state = await self._replica.stage(mean_P)
        result = RoundResult(
            job_id=attempt.job_id,
            index=attempt.index,
            view=attempt.view,
            parent=attempt.parent,
            members=self.plan.members,
            joiners=self.plan.joiners,
            contributions=attempt.contributions,
            state=state,
        )
        await self._events.on_staged(result)
        await self._say(stream, Voted(number=attempt.number))

