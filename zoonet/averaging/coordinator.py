"""The coordinator's side of one round in one view: gather, plan, lead the attempts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from zoonet.averaging.conductor import (
    AskWhy,
    Conductor,
    GiveUp,
    Order,
    StartAttempt,
    StopTraining,
)
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.followers import Follower, Followers
from zoonet.averaging.leases import lease, placed
from zoonet.averaging.messages import (
    MAX_RANGES,
    MESSAGE_BYTES,
    Beat,
    Busy,
    Done,
    Explain,
    Explained,
    Failed,
    FromCoordinator,
    Lease,
    Planned,
    Ready,
    Round,
    Start,
    Stop,
    Voted,
    decode_from_member,
)
from zoonet.averaging.plan import MAX_MEMBERS
from zoonet.averaging.sites import cluster
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import ProtocolViolation, RoundFailed
from zoonet.ranges import Ranges, count, difference
from zoonet.records import sign
from zoonet.transport import Stream

QUIET_BEATS: Final = 2.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeat:
    """Which round a coordinator leads and on what ground it stands."""

    job_id: str
    index: int
    view: int
    parent: bytes
    roster: tuple[PeerId, ...]  # empty in the first round, which anyone may found
    free: Ranges
    num_parameters: int
    suspects: frozenset[PeerId] = frozenset()  # not to be planned with
    leased: Mapping[PeerId, Ranges] = field(default_factory=dict)  # in earlier plans, as seen here
    failed: Mapping[PeerId, Ranges] = field(default_factory=dict)  # slots that peers cannot train


class Coordinator:
    """Leads one round. `attend` serves each member's stream, `lead` runs beside them."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        config: RoundsConfig,
        seat: RoundSeat,
        gather_timeout: LearnedTimeout,
        applicants: Callable[[], set[PeerId]],
    ) -> None:
        self.seat = seat
        self.plan: Round | None = None
        self.record = b""
        self.is_over = False
        self._identity = identity
        self._me = identity.peer_id
        self._clock = clock
        self._config = config
        self._gather_timeout = gather_timeout
        self._applicants = applicants
        self._followers = Followers()
        self._observed: set[PeerId] = set()
        self._conductor: Conductor | None = None
        self._changed = asyncio.Condition()
        self._busy_with = b""
        self._is_settled = False
        self._opened = self._now()
        self._seated: float | None = None  # since when the coordinator itself attends

    # --- gathering ----------------------------------------------------------------------------

    async def lead(self) -> None:
        """Gather members, plan the round and lead it until `settle` is called.

        Then the streams stay open until the followers, who learn of the certificate by
        themselves, have closed them. Raises RoundFailed where the round cannot be led to its
        end; `missing` are those who kept it from that.
        """
        try:
            await self._gather()
            self._announce_plan()
            await self._conduct()
        finally:
            self.is_over = True
            self._followers.dismiss_all()

    @property
    def lost(self) -> frozenset[PeerId]:
        """Members of the plan who came and are gone."""
        return frozenset(self._conductor.lost) if self._conductor is not None else frozenset()

    def settle(self) -> None:
        """The round is certified: there is nothing left to decide."""
        self._is_settled = True

    def stand_down(self, record: bytes) -> None:
        """This peer is a member of another one's round (its raw plan): who came here is sent there.

        Does nothing once the round is planned.
        """
        self._busy_with = record

    async def _gather(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._config.beat_s), self._changed:
                    await self._changed.wait_for(self._is_gathered)
                return
            except TimeoutError:
                self._check_own_seat()
                self._tell_all(Beat())

    def _check_own_seat(self) -> None:
        """Nobody is led by a peer that does not come itself."""
        if self._busy_with:
            self._tell_all(Busy(record=self._busy_with))
            raise RoundFailed("another peer coordinates this round")
        patience_s = self._gather_timeout.timeout_s + self._config.applicant_s
        if self._seated is None and self._now() - self._opened > patience_s:
            raise RoundFailed("this peer itself does not take part in the round")

    def _is_gathered(self) -> bool:
        if self._seated is None:
            return False
        waited_s = self._now() - self._seated
        present = set(self._followers) - self.seat.suspects
        applicants = self._applicants() - self.seat.suspects
        is_complete = applicants <= present or waited_s > self._config.applicant_s
        if not self.seat.roster:
            return len(present) >= self._config.min_founders and is_complete
        missing = set(self.seat.roster) - self.seat.suspects - present
        if missing and waited_s < self._gather_timeout.timeout_s:
            return False
        return is_complete

    def _announce_plan(self) -> None:
        self.plan = plan = self._make_plan()
        now = self._clock.now()
        self.record = sign(
            self._identity,
            plan,
            sequence=int(now * 1000),
            expires_at=now + Round.MAX_LIFETIME_S / 2,
        ).raw
        self._conductor = Conductor(
            plan,
            self._now(),
            self._me,
            self._config.patience,
            self._usual_s(plan),
            self.seat.num_parameters,
            {peer: follower.links for peer, follower in self._followers.items()},
        )
        log.info(
            "planned round=%d view=%d members=%d joiners=%d",
            plan.index,
            plan.view,
            len(plan.members),
            len(plan.joiners),
        )
        self._tell_all(Planned(record=self.record))
        for peer in set(self._followers) - {*plan.members, *plan.joiners}:
            self._followers.drop(peer)

    def _usual_s(self, plan: Round) -> float:
        """How long this peer's own lease should take it, in seconds; 0 while its speed is unknown.

        Where there is no work left for it, the largest lease instead.
        """
        speed = self._followers[self._me].ready.slots_per_s
        num_steps = plan.lease_of(self._me).steps or max(lease.steps for lease in plan.leases)
        return num_steps / speed if speed > 0 else 0.0

    def _make_plan(self) -> Round:
        roster = self.seat.roster or tuple(self._followers)
        present = sorted(set(self._followers) - self.seat.suspects - {self._me})
        others = [peer for peer in present if peer in roster][: self._config.max_members - 1]
        members = {peer: self._followers[peer].ready for peer in sorted((self._me, *others))}
        room = self._config.max_members - len(members)
        joiners = [peer for peer in present if peer not in members][:room]
        leases = lease(
            self.seat.free,
            members,
            self._config.inner_steps,
            is_dynamic=self._config.is_dynamic,
            ahead=self._config.ahead,
            known=self.seat.leased,
            failed=self.seat.failed,
        )
        if self._config.site_steps:
            near = {peer: self._followers[peer].links.near for peer in members}
            leases = placed(leases, cluster(near))
        return Round(
            job_id=self.seat.job_id,
            index=self.seat.index,
            view=self.seat.view,
            parent=self.seat.parent,
            leases=leases,
            joiners=tuple(joiners),
            guests=self._guests(joiners, leases),
        )

    def _guests(self, joiners: list[PeerId], leases: tuple[Lease, ...]) -> tuple[Lease, ...]:
        """What joiners are leased for the time that they have left; nothing where it is scarce."""
        free = difference(self.seat.free, (piece for one in leases for piece in one.slots))
        steps = self._config.inner_steps
        if not joiners or count(free) < steps * (len(joiners) + 2 * len(leases)):
            return ()
        # Half of the rest: failures and stragglers leave work in more pieces than were leased.
        num_pieces = (MAX_RANGES - sum(len(one.slots) for one in leases)) // 2
        if num_pieces < len(joiners):
            return ()
        return lease(
            free,
            {peer: self._followers[peer].ready for peer in sorted(joiners)},
            steps,
            is_dynamic=False,  # nobody knows how long they take to fetch the state
            known=self.seat.leased,
            failed=self.seat.failed,
            most_pieces=num_pieces,
        )

    # --- leading ------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        assert self._conductor is not None
        while self._followers or not self._is_settled:
            if not self._is_settled:
                self._conductor.quiet = self._quiet()
                self._obey(self._conductor.on_time(self._now()))
            await asyncio.sleep(self._config.beat_s)
            for peer, silent_s in self._followers.silences(self._now()).items():
                if silent_s > self._config.silence_s:
                    log.warning("peer=%s has been silent for %.1f s", short(peer), silent_s)
                    self._lose(peer)
            self._tell_all(Beat())

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case StopTraining(peer):
                    log.info("stopping straggler peer=%s", short(peer))
                    self._tell(peer, Stop())
                case StartAttempt(attempt):
                    log.info(
                        "averaging round=%d attempt=%d contributors=%d",
                        attempt.index,
                        attempt.number,
                        len(attempt.contributions),
                    )
                    self._tell_all(Start(attempt=attempt))
                case AskWhy(number):
                    log.info("results differ; asking why attempt=%d", number)
                    self._tell_all(Explain(number=number))
                case GiveUp(reason, suspects):
                    raise RoundFailed(reason, missing=suspects)

    def _obey_or_end(self, orders: list[Order]) -> None:
        """Orders that arise in a follower's own stream: giving up is left to `lead`."""
        if not self._is_settled:
            self._obey([order for order in orders if not isinstance(order, GiveUp)])

    def _tell_all(self, message: FromCoordinator) -> None:
        for peer in list(self._followers):
            self._tell(peer, message)

    def _tell(self, peer: PeerId, message: FromCoordinator) -> None:
        follower = self._followers.get(peer)
        if follower is not None and not follower.tell(message):
            self._lose(peer)

    def _lose(self, peer: PeerId) -> None:
        self._followers.drop(peer)
        if peer == self._me:
            self._seated = None
        if self._conductor is not None and peer in self._conductor.round.contributors:
            self._obey_or_end(self._conductor.on_lost(peer, self._now()))

    # --- a member's stream --------------------------------------------------------------------

    async def attend(self, stream: Stream, ready: Ready) -> None:
        """Serve one member's stream after its Ready, until either side ends it."""
        peer = stream.peer_id
        if self.is_over or not self._has_room(peer):
            return
        follower = Follower(stream, ready)
        self._followers.add(follower, self._now())
        if peer == self._me:
            self._seated = self._now()
            for early in list(self._followers):
                self._observe_arrival(early)
        if self._conductor is not None:
            self._welcome_back(peer, self._conductor)
        else:
            self._observe_arrival(peer)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self._converse(follower)
        finally:
            if self._followers.get(peer) is follower:
                self._lose(peer)

    def _has_room(self, peer: PeerId) -> bool:
        """Whoever may be a member always has a place; of others there may be so many."""
        if peer in self._followers or peer == self._me or peer in self.seat.roster:
            return True
        return len(self._followers) < MAX_MEMBERS + len(self.seat.roster)

    def _observe_arrival(self, peer: PeerId) -> None:
        """Learn how long the others need, from each once, so that nobody can stretch it alone.

        Only once this peer itself is there: others may come before that as often as they like.
        """
        is_awaited = peer in self.seat.roster and peer not in (self._me, *self._observed)
        if self._seated is not None and is_awaited:
            self._observed.add(peer)
            self._gather_timeout.observe(self._now() - self._seated)

    async def _converse(self, follower: Follower) -> None:
        sending = asyncio.create_task(follower.send(self._config.silence_s))
        hearing = asyncio.create_task(self._hear_all(follower.stream))
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, hearing):
                task.cancel()
            ended = await asyncio.gather(sending, hearing, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    def _welcome_back(self, peer: PeerId, conductor: Conductor) -> None:
        self._tell(peer, Planned(record=self.record))
        plan = conductor.round
        if peer not in (*plan.members, *plan.joiners):
            self._followers.drop(peer)
            return
        if peer in plan.contributors:
            conductor.on_back(peer)
        if conductor.attempt is not None:
            self._tell(peer, Start(attempt=conductor.attempt))

    async def _hear_all(self, stream: Stream) -> None:
        while True:
            frame = await stream.receive(MESSAGE_BYTES)
            try:
                message = decode_from_member(frame)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise ProtocolViolation(stream.peer_id, f"a malformed message: {error}") from error
            self._followers.heard(stream.peer_id, self._now())
            if self._conductor is not None:
                self._obey_or_end(self._orders_on(stream.peer_id, message, self._conductor))

    def _quiet(self) -> frozenset[PeerId]:
        """Of whom more than two beats are missing. Of everybody: then this machine was away."""
        limit_s = QUIET_BEATS * self._config.beat_s
        silences = self._followers.silences(self._now())
        quiet = {peer for peer, silent_s in silences.items() if silent_s > limit_s}
        others = silences.keys() - {self._me}
        return frozenset() if quiet >= others else frozenset(quiet - {self._me})

    def _orders_on(self, peer: PeerId, message: object, conductor: Conductor) -> list[Order]:
        now = self._now()
        conductor.quiet = self._quiet()
        match message:
            case Beat(num_slots=num_slots):
                conductor.on_trained(peer, num_slots)
                return []
            case Done(slots=slots, root=root, failure=failure):
                if failure is not None and failure.peer != peer:
                    raise ProtocolViolation(peer, "somebody else's failure")
                return conductor.on_done(peer, slots, root, now, failure)
            case Failed(number=number, missing=missing):
                names = [short(name) for name in missing]
                log.info("attempt=%d failed at peer=%s missing=%s", number, short(peer), names)
                return conductor.on_failed(peer, number, missing, now)
            case Voted():
                return conductor.on_voted(peer, message, now)
            case Explained(number=number, slices=slices):
                return conductor.on_explained(peer, number, slices, now)
            case _:
                return []

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
