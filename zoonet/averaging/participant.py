"""One peer's part in a job, from joining it to the last certified round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from msgspec import Struct, msgpack

from zoonet.averaging.ballot import Ballot
from zoonet.averaging.butterfly import Averager
from zoonet.averaging.chain import Chain, coordinators, is_heavier
from zoonet.averaging.chain_sync import ChainSync
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.coordinator import Coordinator, RoundSeat
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.member import (
    LocalWork,
    Member,
    MemberEvents,
    NotInvited,
    StandsElsewhere,
)
from zoonet.averaging.messages import (
    Busy,
    Certificate,
    Elsewhere,
    Ready,
    Round,
    RoundResult,
    Vote,
    cast_vote,
    decode_from_member,
)
from zoonet.averaging.replica import Replica
from zoonet.averaging.state_sync import StateSync
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import (
    ProtocolViolation,
    RoundFailed,
    ShardUnavailable,
    TransportError,
    ZoonetError,
)
from zoonet.ranges import overlaps
from zoonet.transport import Stream, Transport, call, local_pair, serve_calls

MAX_APPLICANTS = 64
APPLICATION_S = 60.0
VOTE_TIMEOUT_S = 10.0
NUM_POLLED = 4
AVOID_S = 3.0  # a founder that cannot be reached is passed over for this long
FOUNDING_S = 2.0  # without a plan for this long, a founder looks again who is there

log = logging.getLogger(__name__)


class VoteCast(Struct, frozen=True, forbid_unknown_fields=True):
    """A vote on its way to the others of its round."""

    result: RoundResult
    vote: Vote


class Counted(Struct, frozen=True, forbid_unknown_fields=True):
    """The vote has arrived."""


@dataclass(frozen=True, slots=True)
class ParticipantEvents:
    """What the role that runs a participant wants to know, or must tell it."""

    founders: Callable[[], set[PeerId]]  # peers known to want this job, this one included
    on_phase: Callable[[str], None]
    on_round: Callable[[Certificate], Awaitable[None]]


class Participant:
    """Plays one round after the other, catches up, joins late, switches to heavier chains."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        transport: Transport,
        chain: Chain,
        replica: Replica,
        averager: Averager,
        config: RoundsConfig,
        events: ParticipantEvents,
    ) -> None:
        self.chain = chain
        self._identity = identity
        self._me = identity.peer_id
        self._clock = clock
        self._transport = transport
        self._replica = replica
        self._averager = averager
        self._config = config
        self._events = events
        self._work = LocalWork()
        self._ballot = Ballot()
        self._grown = asyncio.Condition()
        self._extending = asyncio.Lock()
        self._rivals: dict[PeerId, tuple[int, bytes]] = {}
        self._applications: dict[PeerId, float] = {}
        self._seats: dict[tuple[bytes, int], tuple[Coordinator, asyncio.Task[None]]] = {}
        self._following: Member | None = None
        self._view = 0
        self._avoided: dict[PeerId, float] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._gather_timeout = LearnedTimeout(first_s=15.0, floor_s=2.0, ceiling_s=60.0)
        self._chain_sync = ChainSync(
            transport, lambda: self.chain, self._grown, self._on_applicant
        )
        self._state_sync = StateSync(transport, chain.job_id, replica)
        self._round_protocol = f"/zoonet/{chain.job_id}/round/1"
        self._vote_protocol = f"/zoonet/{chain.job_id}/vote/1"

    async def serve(self) -> None:
        """Begin to answer others. They may already run while this peer still prepares."""
        await self._chain_sync.serve()
        await self._state_sync.serve()
        await serve_calls(self._transport, self._vote_protocol, VoteCast, self._on_vote)
        await self._transport.serve(self._round_protocol, self._attend)

    async def run(self) -> None:
        """Take part until every slot is certified and the replica holds the final state.

        Raises TrainingError.
        """
        try:
            while not (self.chain.is_finished and self._is_up_to_date):
                length = len(self.chain)
                try:
                    await self._play()
                except (RoundFailed, TransportError, ProtocolViolation) as error:
                    log.info("round=%d view=%d %s", length, self._view, error)
                    await self._wait_for_growth(length, self._config.beat_s)
        finally:
            await self._close()

    def hint(self, peer: PeerId, num_done: int, head: bytes) -> None:
        """Somebody says where its chain stands; a heavier one is looked at between rounds."""
        is_worth_it = peer != self._me and is_heavier(num_done, head, self.chain)
        if is_worth_it and len(self._rivals) < MAX_APPLICANTS:
            self._rivals[peer] = (num_done, head)

    # --- one round ----------------------------------------------------------------------------

    async def _play(self) -> None:
        await self._look_at_rivals()
        length = len(self.chain)
        roster = self.chain.roster
        if self.chain.is_finished:
            await self._bring_up_to_date(roster)
            return
        if self._me in roster or not roster:
            await self._bring_up_to_date(roster)
        order = coordinators(self.chain.head, roster or self._founders())
        coordinator = order[self._view % len(order)]
        self._events.on_phase("waiting" if self._me in roster or not roster else "joining")
        try:
            await self._follow(coordinator, length)
        except NotInvited as error:
            await self._wait_outside(error.plan, length)
        except StandsElsewhere:
            self._rivals[coordinator] = (0, b"")
            await self._wait_for_growth(length, self._config.beat_s)
        except ProtocolViolation as error:
            log.warning("round=%d view=%d %s", length, self._view, error)
            await self._next_view(length)
        except (RoundFailed, TransportError) as error:
            log.info("round=%d view=%d ended early: %s", length, self._view, error)
            if not roster:
                self._avoided[coordinator] = asyncio.get_running_loop().time() + AVOID_S
            await self._next_view(length)

    async def _next_view(self, length: int) -> None:
        """Give the votes that are under way a moment; then it is the next coordinator's turn."""
        await self._wait_for_growth(length, self._config.beat_s)
        if len(self.chain) == length and self.chain.roster:
            self._view += 1

    def _founders(self) -> set[PeerId]:
        """Who may found the job, without those that could not be reached a moment ago.

        In the first round there is no roster that fixes an order of coordinators, and everybody
        knows of others at another time: so all keep coming back to the first whom they reach.
        """
        now = asyncio.get_running_loop().time()
        avoided = {peer for peer, until in self._avoided.items() if until > now}
        return (self._events.founders() - avoided) | {self._me}

    async def _follow(self, coordinator: PeerId, length: int) -> None:
        """Follow the coordinator until the chain has grown. Raises what ended it before."""
        view = self._view
        member = Member(
            self._me, self._clock, self._config, self._replica, self._averager, self._work,
            MemberEvents(self._on_plan, self._events.on_phase, self._on_staged),
        )
        ready = Ready(
            job_id=self.chain.job_id,
            length=length,
            head=self.chain.head,
            view=view,
            slots_per_s=self._replica.slots_per_s,
            carried=self._work.carried,
        )
        self._following = member
        try:
            async with self._stream_to(coordinator, ready) as stream:
                following = asyncio.create_task(
                    member.follow(
                        stream,
                        ready,
                        num_done=self.chain.num_done,
                        free=self.chain.free,
                        plan_timeout_s=None if self.chain.roster else FOUNDING_S,
                    )
                )
                await self._until_grown(following, length)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._following = None

    async def _until_grown(self, following: asyncio.Task[None], length: int) -> None:
        growing = asyncio.create_task(self._wait_for_growth(length, None))
        try:
            await asyncio.wait({following, growing}, return_when=asyncio.FIRST_COMPLETED)
            if len(self.chain) == length:
                await following
        finally:
            for task in (following, growing):
                task.cancel()
            await asyncio.gather(following, growing, return_exceptions=True)

    @asynccontextmanager
    async def _stream_to(self, coordinator: PeerId, ready: Ready) -> AsyncIterator[Stream]:
        if coordinator != self._me:
            async with asyncio.timeout(self._config.silence_s):
                stream = await self._transport.open(coordinator, self._round_protocol)
            try:
                yield stream
            finally:
                await stream.close()
            return
        near, far = local_pair(self._me)
        attending = asyncio.create_task(self._seat(ready.view).attend(far, ready))
        try:
            yield near
        finally:
            await near.close()
            await far.close()
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)

    async def _on_plan(self, plan: Round) -> None:
        await self._bring_up_to_date(plan.members)

    async def _on_staged(self, result: RoundResult) -> None:
        if self._me not in result.members:
            return
        vote = cast_vote(self._identity, result)
        for peer in (*result.members, *result.joiners):
            if peer != self._me:
                self._spawn(self._send_vote(PeerId(peer), VoteCast(result, vote)))
        await self._count(result, vote)

    async def _send_vote(self, peer: PeerId, cast: VoteCast) -> None:
        try:
            await call(
                self._transport, peer, self._vote_protocol, cast, Counted,
                timeout_s=VOTE_TIMEOUT_S,
            )
        except (TransportError, ProtocolViolation) as error:
            log.debug("vote not delivered: %s", error)

    # --- votes and growth ---------------------------------------------------------------------

    async def _on_vote(self, peer: PeerId, cast: VoteCast) -> Counted:
        if cast.result.index > len(self.chain):
            self._rivals[peer] = (0, b"")
        elif cast.result.parent == self.chain.head:
            await self._count(cast.result, cast.vote)
        return Counted()

    async def _count(self, result: RoundResult, vote: Vote) -> None:
        if result.parent != self.chain.head:
            return
        certificate = self._ballot.cast(self.chain, result, vote)
        if certificate is not None:
            await self._extend(certificate)

    async def _extend(self, certificate: Certificate) -> None:
        """Apply a certified round: the one vote that ends it."""
        async with self._extending:
            result = certificate.result
            if result.parent != self.chain.head:
                return
            self.chain.extend(certificate)
            is_merged = any(share.peer == self._me for share in result.contributions)
            is_here = await self._replica.commit(result.state, is_merged=is_merged)
            if is_merged:
                self._work.carried = ()
            elif overlaps(self._work.carried, self.chain.done):
                await self._replica.drop_local()
                self._work.carried = ()
            log.info(
                "certified round=%d members=%d contributors=%d applied=%s",
                result.index, len(result.members), len(result.contributions), is_here,
            )
            await self._grew()
        await self._events.on_round(certificate)

    async def _grew(self) -> None:
        self._view = 0
        for key, (coordinator, leading) in list(self._seats.items()):
            if key[0] != self.chain.head:
                coordinator.settle()
                self._spawn(self._retire(leading))
                del self._seats[key]
        async with self._grown:
            self._grown.notify_all()

    async def _retire(self, leading: asyncio.Task[None]) -> None:
        """Let a coordinator's streams live on until the votes have reached its followers."""
        await asyncio.wait({leading}, timeout=self._config.patience.certify_s)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)

    async def _wait_for_growth(self, length: int, timeout_s: float | None) -> None:
        """Return when the chain is longer than `length`, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._grown:
                await self._grown.wait_for(lambda: len(self.chain) > length)
        except TimeoutError:
            return

    # --- catching up --------------------------------------------------------------------------

    async def _bring_up_to_date(self, donors: tuple[PeerId, ...]) -> None:
        """Fetch the state at the chain's head where the replica holds another one."""
        last = self.chain.last
        if last is None or self._is_up_to_date:
            return
        self._events.on_phase("joining")
        self._work.carried = ()
        others = [peer for peer in donors if peer != self._me]
        if not others:
            raise ShardUnavailable("nobody is left who holds the state at the chain's head")
        try:
            await self._state_sync.fetch(last.state, others)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    @property
    def _is_up_to_date(self) -> bool:
        last = self.chain.last
        return last is None or self._replica.state_digest == last.state

    async def _look_at_rivals(self) -> None:
        while self._rivals:
            peer, _ = self._rivals.popitem()
            try:
                heavier = await self._chain_sync.fetch_heavier(peer)
            except (TransportError, ProtocolViolation) as error:
                log.info("no chain from peer=%s: %s", short(peer), error)
                continue
            if heavier is not None:
                await self._switch(heavier)

    async def _switch(self, heavier: Chain) -> None:
        async with self._extending:
            if not is_heavier(heavier.num_done, heavier.head, self.chain):
                return
            is_split = self.chain.heads != heavier.heads[: len(self.chain)]
            log.info(
                "%s rounds=%d slots=%d",
                "switched to a heavier chain" if is_split else "caught up",
                len(heavier), heavier.num_done,
            )
            self.chain = heavier
            if is_split or overlaps(self._work.carried, heavier.done):
                await self._replica.drop_local()
                self._work.carried = ()
            await self._grew()

    async def _wait_outside(self, plan: Round, length: int) -> None:
        """A round runs without this peer: ask its members to be let into the next one."""
        others = [peer for peer in plan.members if peer != self._me][:NUM_POLLED]
        if self._me in plan.members:  # only the connection to its coordinator had failed
            self._view = plan.view
            await self._wait_for_growth(length, self._config.beat_s)
            return
        self._events.on_phase("joining")
        polls = [asyncio.create_task(self._poll(peer, length)) for peer in others]
        polls.append(asyncio.create_task(self._wait_for_growth(length, None)))
        try:
            await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in polls:
                task.cancel()
            await asyncio.gather(*polls, return_exceptions=True)

    async def _poll(self, peer: PeerId, length: int) -> None:
        try:
            page = await self._chain_sync.read(peer, length, wait_s=20.0, wants_in=True)
            for certificate in page.certificates:
                await self._extend(certificate)
        except (TransportError, ProtocolViolation) as error:
            log.debug("polling peer=%s: %s", short(peer), error)
            await asyncio.sleep(self._config.silence_s)

    # --- the coordinator's chair --------------------------------------------------------------

    def _on_applicant(self, peer: PeerId) -> None:
        if len(self._applications) < MAX_APPLICANTS:
            self._applications[peer] = asyncio.get_running_loop().time()

    def _applicants(self) -> set[PeerId]:
        """Who asked lately to be let in; in the first round everyone known to want the job."""
        if not self.chain.roster:
            return self._events.founders() | {self._me}
        now = asyncio.get_running_loop().time()
        for peer, asked in list(self._applications.items()):
            if now - asked > APPLICATION_S or peer in self.chain.roster:
                del self._applications[peer]
        return set(self._applications)

    def _seat(self, view: int) -> Coordinator:
        """The coordinator for the next round in this view; made when first needed."""
        key = (self.chain.head, view)
        if key not in self._seats:
            seat = RoundSeat(
                job_id=self.chain.job_id,
                index=len(self.chain),
                view=view,
                parent=self.chain.head,
                roster=self.chain.roster,
                free=self.chain.free,
            )
            coordinator = Coordinator(
                self._identity, self._clock, self._config, seat, self._gather_timeout,
                self._applicants,
            )
            self._seats[key] = (coordinator, asyncio.create_task(self._lead(key, coordinator)))
        return self._seats[key][0]

    async def _lead(self, key: tuple[bytes, int], coordinator: Coordinator) -> None:
        try:
            await coordinator.lead()
        except RoundFailed as error:
            log.info("round=%d view=%d given up: %s", coordinator.seat.index, key[1], error)

    async def _attend(self, stream: Stream) -> None:
        """Somebody takes this peer for the coordinator of its next round."""
        try:
            ready = decode_from_member(await stream.receive(256 * 1024))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolViolation(stream.peer_id, f"a malformed message: {error}") from error
        if not isinstance(ready, Ready) or ready.job_id != self.chain.job_id:
            raise ProtocolViolation(stream.peer_id, "a round's stream must open with Ready")
        if ready.length == len(self.chain) + 1:
            await self._wait_for_growth(len(self.chain), self._config.silence_s / 2)
        if (ready.length, ready.head) != (len(self.chain), self.chain.head):
            if ready.length >= len(self.chain):
                self._rivals[stream.peer_id] = (0, b"")
            await self._say_elsewhere(stream)
            return
        plan = self._following.record if self._following is not None else b""
        if plan and not self._leads(plan):
            await stream.send(msgpack.encode(Busy(record=plan)))
        elif self._is_coordinator(ready.view, stream.peer_id) and not self.chain.is_finished:
            await self._seat(ready.view).attend(stream, ready)
        else:
            await self._say_elsewhere(stream)

    async def _say_elsewhere(self, stream: Stream) -> None:
        message = Elsewhere(length=len(self.chain), head=self.chain.head)
        await stream.send(msgpack.encode(message))

    def _leads(self, record: bytes) -> bool:
        return any(seat.record == record for seat, _ in self._seats.values())

    def _is_coordinator(self, view: int, asker: PeerId) -> bool:
        roster = self.chain.roster or self._founders() | {asker}
        order = coordinators(self.chain.head, roster)
        return order[view % len(order)] == self._me

    # --- housekeeping -------------------------------------------------------------------------

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _close(self) -> None:
        leading = [task for _, task in self._seats.values()]
        if leading:
            await asyncio.wait(leading, timeout=self._config.patience.certify_s)
        for task in (*leading, *self._background):
            task.cancel()
        await asyncio.gather(*leading, *self._background, return_exceptions=True)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a group of failed tasks is about; bugs come before faults."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=lambda error: isinstance(error, ZoonetError | TimeoutError))
