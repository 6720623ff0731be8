"""The coordinator's side of one round in one view: gather, plan, lead the attempts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from msgspec import msgpack

from zoonet.averaging.conductor import (
    Conductor,
    GiveUp,
    Order,
    StartAttempt,
    StopTraining,
)
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.leases import lease
from zoonet.averaging.messages import (
    Beat,
    Done,
    Failed,
    FromCoordinator,
    Planned,
    Ready,
    Round,
    Start,
    Stop,
    Voted,
    decode_from_member,
)
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import ProtocolViolation, RoundFailed, TransportError
from zoonet.ranges import Ranges
from zoonet.records import sign
from zoonet.transport import Stream

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


@dataclass(slots=True)
class _Follower:
    stream: Stream
    ready: Ready
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def tell(self, message: FromCoordinator) -> None:
        async with self.lock:
            await self.stream.send(msgpack.encode(message))


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
        self._identity = identity
        self._clock = clock
        self._config = config
        self._gather_timeout = gather_timeout
        self._applicants = applicants
        self._followers: dict[PeerId, _Follower] = {}
        self._heard: dict[PeerId, float] = {}
        self._conductor: Conductor | None = None
        self.record = b""
        self._changed = asyncio.Condition()
        self._is_over = False
        self._is_settled = False
        self._opened = asyncio.get_running_loop().time()

    # --- gathering ----------------------------------------------------------------------------

    async def lead(self) -> None:
        """Gather members, plan the round and lead it until `settle` is called.

        Then the streams stay open until the followers, who learn of the certificate by
        themselves, have closed them. Raises RoundFailed where nobody is left who contributes.
        """
        try:
            await self._gather()
            await self._announce_plan()
            await self._conduct()
        finally:
            self._is_over = True
            for follower in list(self._followers.values()):
                await follower.stream.close()

    def settle(self) -> None:
        """The round is certified: there is nothing left to decide."""
        self._is_settled = True

    async def _gather(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._config.beat_s), self._changed:
                    await self._changed.wait_for(self._is_gathered)
                return
            except TimeoutError:
                await self._beat()

    def _is_gathered(self) -> bool:
        waited_s = self._now() - self._opened
        present = set(self._followers)
        if not self.seat.roster:
            return len(present) >= self._config.min_founders and (
                self._applicants() <= present or waited_s > self._config.applicant_s
            )
        if not present & set(self.seat.roster):
            return False
        missing = set(self.seat.roster) - present
        if missing and waited_s < self._gather_timeout.timeout_s:
            return False
        return self._applicants() <= present or waited_s > self._config.applicant_s

    async def _announce_plan(self) -> None:
        founders = not self.seat.roster
        members = {
            peer: follower.ready
            for peer, follower in self._followers.items()
            if founders or peer in self.seat.roster
        }
        members = dict(sorted(members.items())[: self._config.max_members])
        room = self._config.max_members - len(members)
        joiners = sorted(set(self._followers) - set(members))[: max(0, room)]
        leases = lease(
            self.seat.free,
            members,
            self._config.inner_steps,
            is_dynamic=self._config.is_dynamic,
        )
        self.plan = Round(
            job_id=self.seat.job_id,
            index=self.seat.index,
            view=self.seat.view,
            parent=self.seat.parent,
            leases=leases,
            joiners=tuple(joiners),
        )
        now = self._clock.now()
        signed = sign(
            self._identity,
            self.plan,
            sequence=int(now * 1000),
            expires_at=now + Round.MAX_LIFETIME_S / 2,
        )
        self.record = signed.raw
        self._conductor = Conductor(self.plan, self._now(), self._config.patience)
        log.info(
            "planned round=%d view=%d members=%d joiners=%d",
            self.plan.index, self.plan.view, len(members), len(joiners),
        )
        for peer in list(self._followers):
            await self._tell(peer, Planned(record=self.record))

    # --- leading ------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        assert self._conductor is not None
        for peer in self._conductor.round.members:
            self._heard.setdefault(peer, self._now())
        while self._followers or not self._is_settled:
            if not self._is_settled:
                await self._obey(self._conductor.on_time(self._now()))
            await asyncio.sleep(self._config.beat_s)
            for peer, heard in list(self._heard.items()):
                silent_s = self._now() - heard
                if silent_s > self._config.silence_s and peer in self._followers:
                    log.warning("peer=%s has been silent for %.1f s", short(peer), silent_s)
                    await self._lose(peer)
            await self._beat()

    async def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case StopTraining(peer):
                    log.info("stopping straggler peer=%s", short(peer))
                    await self._tell(peer, Stop())
                case StartAttempt(attempt):
                    log.info(
                        "averaging round=%d attempt=%d contributors=%d",
                        attempt.index, attempt.number, len(attempt.contributions),
                    )
                    for peer in list(self._followers):
                        await self._tell(peer, Start(attempt=attempt))
                case GiveUp(reason):
                    raise RoundFailed(reason)

    async def _beat(self) -> None:
        for peer in list(self._followers):
            await self._tell(peer, Beat())

    async def _tell(self, peer: PeerId, message: FromCoordinator) -> None:
        follower = self._followers.get(peer)
        if follower is None:
            return
        try:
            async with asyncio.timeout(self._config.silence_s):
                await follower.tell(message)
        except (TransportError, TimeoutError):
            await self._lose(peer)

    async def _lose(self, peer: PeerId) -> None:
        follower = self._followers.pop(peer, None)
        self._heard.pop(peer, None)
        if follower is not None:
            await follower.stream.close()
        if self._conductor is not None and peer in self._conductor.round.members:
            await self._obey_or_end(self._conductor.on_lost(peer, self._now()))

    async def _obey_or_end(self, orders: list[Order]) -> None:
        """Orders that arise in a follower's own stream: giving up is left to `lead`."""
        if self._is_settled:
            return
        await self._obey([order for order in orders if not isinstance(order, GiveUp)])

    # --- a member's stream --------------------------------------------------------------------

    async def attend(self, stream: Stream, ready: Ready) -> None:
        """Serve one member's stream after its Ready, until either side ends it."""
        peer = stream.peer_id
        if self._is_over:
            return
        stale = self._followers.pop(peer, None)
        if stale is not None:
            await stale.stream.close()
        follower = _Follower(stream, ready)
        self._followers[peer] = follower
        self._heard[peer] = self._now()
        if self._conductor is not None:
            await self._welcome_back(peer)
        elif peer in self.seat.roster:
            self._gather_timeout.observe(self._now() - self._opened)
        async with self._changed:
            self._changed.notify_all()
        try:
            while True:
                await self._hear(peer, await stream.receive(256 * 1024))
        except TransportError:
            if self._followers.get(peer) is follower:
                await self._lose(peer)

    async def _welcome_back(self, peer: PeerId) -> None:
        assert self._conductor is not None
        await self._tell(peer, Planned(record=self.record))
        if peer in self._conductor.round.members:
            self._conductor.on_back(peer)
        if self._conductor.attempt is not None:
            await self._tell(peer, Start(attempt=self._conductor.attempt))

    async def _hear(self, peer: PeerId, frame: bytes) -> None:
        try:
            message = decode_from_member(frame)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolViolation(peer, f"a malformed message: {error}") from error
        self._heard[peer] = self._now()
        if self._conductor is None:
            return
        match message:
            case Done(slots=slots):
                await self._obey_or_end(self._conductor.on_done(peer, slots, self._now()))
            case Failed(number=number, missing=missing):
                log.info(
                    "attempt=%d failed at peer=%s missing=%s",
                    number, short(peer), [short(name) for name in missing],
                )
                await self._obey_or_end(
                    self._conductor.on_failed(peer, number, missing, self._now())
                )
            case Voted(number=number):
                await self._obey_or_end(self._conductor.on_voted(peer, number, self._now()))
            case Beat() | Ready():
                pass

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
