"""A member's side of one round: get ready, train, average, vote."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import msgpack

from zoonet.averaging.allreduce import AttemptFailed, Averager
from zoonet.averaging.chain import Chain
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.messages import (
    MAX_FAILED,
    MESSAGE_BYTES,
    Attempt,
    Beat,
    Busy,
    Done,
    Elsewhere,
    Explain,
    Explained,
    Failed,
    FromCoordinator,
    FromMember,
    Lease,
    Planned,
    Ready,
    Round,
    RoundResult,
    Share,
    Start,
    Stop,
    Voted,
    decode_from_coordinator,
    report_failure,
)
from zoonet.averaging.replica import Replica
from zoonet.averaging.rules import check_attempt, check_plan
from zoonet.averaging.site_mean import SiteMean
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import PeerTimeout, ProtocolViolation, RoundFailed, WorkLost
from zoonet.ranges import Ranges, count, difference, overlaps, take, union
from zoonet.records import verify
from zoonet.transport import Stream

MAX_TRIES: Final = 3  # at a round's work, each without the slots that the one before failed on

log = logging.getLogger(__name__)


class StandsElsewhere(RoundFailed):
    """The coordinator has another chain, of that length."""

    def __init__(self, length: int) -> None:
        super().__init__("the coordinator stands at another head")
        self.length = length


class NotInvited(RoundFailed):
    """The round is under way without this peer; `plan` says with whom.

    `is_hearsay` tells that not its coordinator said so, but a member of it.
    """

    def __init__(self, plan: Round, *, is_hearsay: bool) -> None:
        super().__init__(f"round {plan.index} is under way without this peer")
        self.plan = plan
        self.is_hearsay = is_hearsay


class NoPlan(RoundFailed):
    """The coordinator is there, but plans nothing."""


@dataclass(frozen=True, slots=True)
class MemberEvents:
    """What the outside wants to know of, or must do, while a round runs."""

    on_plan: Callable[[Round, bytes], Awaitable[None]]  # bring the replica to the parent state
    on_phase: Callable[[str], None]
    on_staged: Callable[[RoundResult], Awaitable[None]]  # vote for it
    on_failed: Callable[[Ranges], None]  # data slots that cannot be trained here


class Member:
    """Follows one coordinator through one round. Used once."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        config: RoundsConfig,
        replica: Replica,
        averager: Averager,
        events: MemberEvents,
        site: SiteMean | None = None,
        failed: Ranges = (),
    ) -> None:
        self._identity = identity
        self._peer_id = identity.peer_id
        self._clock = clock
        self._config = config
        self._replica = replica
        self._averager = averager
        self._events = events
        self._site = site
        self._attempts: asyncio.Queue[Attempt] = asyncio.Queue(1)  # the newest
        self._last_attempt: Attempt | None = None
        self._explained = -1  # the newest attempt whose slices were told
        self._slots: Ranges = ()  # that this peer has reported to have done
        self._root = bytes(32)  # of what it has committed to
        self._failed = failed  # that cannot be trained here, as this round has shown
        self._is_stopped = False
        self._lock = asyncio.Lock()
        self.plan: Round | None = None
        self.record = b""  # the plan as its coordinator signed it

    async def follow(
        self, stream: Stream, ready: Ready, chain: Chain, *, plan_timeout_s: float
    ) -> None:
        """Play the round to the end of the stream or until cancelled.

        The caller cancels it when the round's certificate is there. Raises a group of RoundFailed
        (or a subclass of it), TransportError, ProtocolViolation or TrainingError.
        """
        await self._say(stream, ready)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat(stream))
            try:
                async with asyncio.timeout(plan_timeout_s):
                    self.plan = await self._receive_plan(stream, chain)
            except TimeoutError as error:
                raise NoPlan(f"no plan after {plan_timeout_s:.0f} s") from error
            if self._peer_id not in (*self.plan.members, *self.plan.joiners):
                raise NotInvited(self.plan, is_hearsay=False)
            tasks.create_task(self._listen(stream))
            await self._events.on_plan(self.plan, self.record)
            if self._peer_id in self.plan.contributors:
                await self._train(stream, ready, chain.num_done)
            self._events.on_phase("averaging")
            await self._average(stream)

    # --- talking ------------------------------------------------------------------------------

    async def _say(self, stream: Stream, message: FromMember) -> None:
        try:
            async with asyncio.timeout(self._config.silence_s), self._lock:
                await stream.send(msgpack.encode(message))
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(stream.peer_id)} does not read") from error

    async def _hear(self, stream: Stream) -> FromCoordinator:
        try:
            async with asyncio.timeout(self._config.silence_s):
                frame = await stream.receive(MESSAGE_BYTES)
            return decode_from_coordinator(frame)
        except TimeoutError as error:
            raise RoundFailed(
                f"the coordinator {short(stream.peer_id)} has been silent for "
                f"{self._config.silence_s:.0f} s"
            ) from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ProtocolViolation(stream.peer_id, f"a malformed message: {error}") from error

    async def _receive_plan(self, stream: Stream, chain: Chain) -> Round:
        while True:
            match await self._hear(stream):
                case Planned(record=raw):
                    plan = self._read_plan(stream.peer_id, stream.peer_id, raw, chain)
                    self.record = raw
                    return plan
                case Elsewhere(length=length):
                    raise StandsElsewhere(length)
                case Busy(record=raw):
                    plan = self._read_plan(stream.peer_id, None, raw, chain)
                    raise NotInvited(plan, is_hearsay=True)
                case _:
                    continue

    def _read_plan(
        self, teller: PeerId, coordinator: PeerId | None, raw: bytes, chain: Chain
    ) -> Round:
        """Check a plan that somebody showed us, of a certain coordinator or of any."""
        record = verify(raw, now=self._clock.now()).expect(Round)
        plan: Round = record.body
        if coordinator is not None and record.author != coordinator:
            raise ProtocolViolation(teller, "a round that another peer planned")
        if coordinator is None and plan.parent != chain.head:
            raise StandsElsewhere(plan.index)  # it is a moment behind or ahead
        check_plan(plan, record.author, chain, self._config)
        return plan

    async def _listen(self, stream: Stream) -> None:
        assert self.plan is not None
        while True:
            match await self._hear(stream):
                case Stop():
                    self._is_stopped = True
                    self._replica.stop()
                case Start(attempt=attempt):
                    self._check_attempt(attempt, stream.peer_id)
                    self._last_attempt = attempt
                    while not self._attempts.empty():
                        self._attempts.get_nowait()
                    self._attempts.put_nowait(attempt)
                case Explain(number=number) if number > self._explained:
                    self._explained = number
                    slices = await self._averager.slice_digests(number)
                    await self._say(stream, Explained(number=number, slices=slices))
                case _:
                    continue

    def _check_attempt(self, attempt: Attempt, coordinator: PeerId) -> None:
        assert self.plan is not None
        check_attempt(
            attempt,
            self.plan,
            coordinator,
            before=self._last_attempt,
            mine=Share(self._peer_id, self._slots),
            root=self._root,
            num_parameters=self._replica.num_parameters,
        )

    async def _beat(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(self._config.beat_s)
            await self._say(stream, Beat(num_slots=self._replica.num_trained))

    # --- working ------------------------------------------------------------------------------

    async def _train(self, stream: Stream, ready: Ready, num_done: int) -> None:
        assert self.plan is not None
        lease = self.plan.lease_of(self._peer_id)
        carried = self._replica.carried
        if difference(union(ready.leased, carried), lease.slots):
            # It may hold work on slots that are others' now, and what is mixed cannot be parted.
            log.info("local work was not taken on; dropping slots=%d", count(carried))
            await self._replica.drop_local()
        if lease.slots:
            self._events.on_phase("training")
            await self._train_what_can_be(self.plan, ready, num_done)
            await self._commit()
        await self._say(stream, self._done(lease))

    def _done(self, lease: Lease) -> Done:
        failed, _ = take(
            difference(self._failed, difference(self._failed, lease.slots)), MAX_FAILED
        )
        if not failed:
            return Done(slots=self._slots, root=self._root)
        assert self.plan is not None
        failure = report_failure(self._identity, self.plan.job_id, self.plan.parent, failed)
        return Done(slots=self._slots, root=self._root, failure=failure)

    async def _train_what_can_be(self, plan: Round, ready: Ready, num_done: int) -> None:
        """Train; roll back and train again without the slots that it failed on.

        Where others' work was mixed in, that may be what failed: then with the same slots, alone.
        """
        lease, site = plan.lease_of(self._peer_id), self._site
        stops: Sequence[int] = ()
        if site is not None:
            near = frozenset(map(PeerId, ready.near))
            stops = site.begin(plan, near, is_carrying=bool(self._replica.carried))
        for _ in range(MAX_TRIES + (site is not None)):
            slots = difference(lease.slots, self._failed)
            if not slots or self._is_stopped:
                return
            able = Lease(lease.peer, slots, min(lease.steps, count(slots)))
            failed = await self._train_slots(able, plan.num_steps, num_done, stops)
            stops = ()  # the neighbours have met meanwhile
            if site is not None and site.mixed_with and not self._replica.carried:
                log.info("what this site has mixed is lost; training alone")
                site.mixed_with = frozenset()  # it starts from the outer parameters
                continue
            if not failed or overlaps(failed, self._failed) or difference(failed, slots):
                return
            self._failed = union(self._failed, failed)
            self._events.on_failed(failed)

    async def _commit(self) -> None:
        """Settle on what to contribute, before anybody is sent a byte of it."""
        self._slots = self._replica.carried
        if not self._slots:
            return
        try:
            self._root = await self._averager.commit(await self._replica.pseudo_gradient())
        except WorkLost as error:
            log.warning("%s", error)
            await self._replica.drop_local()
            self._slots = ()

    async def _train_slots(
        self, lease: Lease, num_planned: int, num_done: int, stops: Sequence[int]
    ) -> Ranges:
        """Train, and where the round ends meanwhile keep what has been trained until then.

        Returns the slots that it failed on, where these are known.
        """
        site = self._site
        training = asyncio.ensure_future(
            self._replica.train(
                lease.slots,
                steps=lease.steps,
                num_done=num_done,
                num_planned=num_planned,
                stops=stops,
                mix=site.mix if site is not None and stops else None,
            )
        )
        try:
            await asyncio.shield(training)
        except asyncio.CancelledError:
            self._replica.stop()
            await self._outlast(training)
            raise
        except WorkLost:
            pass  # `_outlast` says so
        finally:
            if site is not None:
                site.leave()
        return await self._outlast(training)

    async def _outlast(self, training: asyncio.Future[Ranges]) -> Ranges:
        try:
            await training
        except WorkLost as error:
            log.warning("this round's local work is lost: %s", error)
            await self._replica.drop_local()
            return error.slots
        return ()

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

    async def _outcome(self, attempt: Attempt) -> bytes:
        """Digest of the state after the attempt: the same where nobody could train anything."""
        if not attempt.contributions:
            return self._replica.state_digest
        return await self._replica.stage(await self._averager.average(attempt))

    async def _follow_attempt(self, stream: Stream, attempt: Attempt) -> None:
        assert self.plan is not None
        try:
            state = await self._outcome(attempt)
        except AttemptFailed as error:
            log.info("attempt=%d failed: %s", attempt.number, error)
            missing = tuple(sorted(error.missing))
            await self._say(stream, Failed(number=attempt.number, missing=missing))
            return
        result = RoundResult(
            job_id=attempt.job_id,
            index=attempt.index,
            view=attempt.view,
            parent=attempt.parent,
            members=self.plan.members,
            joiners=self.plan.joiners,
            contributions=attempt.contributions,
            state=state,
            failures=attempt.failures,
        )
        # With the others' votes this peer may be gone in a moment: the coordinator must not take
        # it for lost.
        voted = Voted(number=attempt.number, result=result.digest())
        telling = asyncio.create_task(self._say(stream, voted))
        try:
            await self._events.on_staged(result)
        finally:
            await asyncio.gather(telling, return_exceptions=True)
