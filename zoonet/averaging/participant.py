"""One peer's part in a job, from joining it to the last certified round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from msgspec import Struct

from zoonet.averaging.ballot import Ballot
from zoonet.averaging.allreduce import Averager
from zoonet.averaging.chain import (
    Chain,
    coordinators,
    has_quorum,
    idlers,
    longer,
    replaces,
    split_of,
)
from zoonet.averaging.chain_sync import ChainSync
from zoonet.averaging.chair import GATHER_FLOOR_S, Chair
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.member import (
    LocalWork,
    Member,
    MemberEvents,
    NoPlan,
    NotInvited,
    StandsElsewhere,
)
from zoonet.averaging.messages import (
    Certificate,
    Ready,
    Round,
    RoundResult,
    Vote,
    cast_vote,
)
from zoonet.averaging.replica import Replica
from zoonet.averaging.rivals import Rivals
from zoonet.averaging.rules import follows
from zoonet.averaging.state_sync import StateSync
from zoonet.averaging.suspects import Suspects
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import (
    PeerTimeout,
    ProtocolViolation,
    RoundFailed,
    ShardUnavailable,
    TransportError,
    ZoonetError,
)
from zoonet.ranges import overlaps
from zoonet.transport import Stream, Transport, call, local_pair, serve_calls

VOTE_TIMEOUT_S: Final = 10.0
NUM_POLLED: Final = 4
AVOID_S: Final = 3.0  # a founder that cannot be reached is passed over for this long
FAREWELL_S: Final = 20.0  # how long the final state of a finished job is looked for
FOUNDING_S: Final = 2.0  # without a plan for this long, a founder looks again who is there
MAX_NO_PLANS: Final = 8  # in a row, before another founder is tried
PLAN_S: Final = 45.0  # for a plan; a coordinator gathers for 30 s at most
CATCH_UP_S: Final = 30.0  # for a look at the chains there are, before founding another one
MINORITY_S: Final = 60.0  # before a round is believed in that most of the roster has no part in
MAX_REFUSALS: Final = 8  # times that a coordinator may send this peer elsewhere, for one head
FINISH_S: Final = 2.0  # to finish a round that the others have certified
FINISH_SHARE: Final = 0.25  # or this share of what it has taken so far
IDLE_ROUNDS: Final = 3  # that a member may go without a contribution
ROUND_SLACK: Final = 2.0  # of the learned duration of a round, before it is given up

T = TypeVar("T")

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
        self._staging = asyncio.Condition()
        self._staged = b""  # the state that the replica has staged last
        self._is_averaging = False
        self._plan: Round | None = None  # of the round that this peer takes part in
        self._planned_at = 0.0
        self._ready_at = 0.0
        self._grew_at = 0.0
        self._view = 0
        self._num_refusals = 0
        self._avoided: dict[PeerId, float] = {}
        self._awaited = self._me  # the founder that was followed last without a plan
        self._num_no_plans = 0  # of it, in a row
        self._suspects = Suspects()
        self._round_timeout = LearnedTimeout(first_s=600.0, floor_s=30.0, ceiling_s=7200.0)
        self._background: set[asyncio.Task[Any]] = set()
        self._chair = Chair(
            identity,
            clock,
            config,
            lambda: self.chain,
            self._founders,
            self._suspects,
            replica.num_parameters,
        )
        self._chain_sync = ChainSync(transport, lambda: self.chain, self._grown, self._chair.apply)
        self._rivals = Rivals(
            self._chain_sync, lambda: self.chain, self._switch, lambda: self._plan is None
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

        Raises TrainingError, or ShardUnavailable where the job is finished and nobody hands out
        its final state for FAREWELL_S: the others have published the model and gone.
        """
        self._grew_at = self._now()
        looking = asyncio.create_task(self._rivals.run())
        try:
            while not (self.chain.is_finished and self._is_up_to_date):
                head = self.chain.head
                if looking.done():
                    looking.result()  # it never ends, unless by a bug
                try:
                    await self._play()
                except (RoundFailed, TransportError, ProtocolViolation) as error:
                    log.info("round=%d view=%d %s", len(self.chain), self._view, error)
                    if self.chain.is_finished and self._now() - self._grew_at > FAREWELL_S:
                        raise ShardUnavailable("the job is finished, its state is gone") from error
                    await self._wait_for_growth(head, self._config.beat_s)
            await self._deliver_votes()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await self._close()

    def hint(self, peer: PeerId, num_done: int, head: bytes) -> None:
        """Somebody says where its chain stands; if that is elsewhere it is looked at."""
        if peer != self._me and num_done > 0:
            self._rivals.note(peer, head)

    # --- one round ----------------------------------------------------------------------------

    async def _play(self) -> None:
        async with self._extending:
            pass  # a round that is being applied comes first
        if not self.chain.roster:
            await self._rivals.settled(CATCH_UP_S)
        head, length, roster = self.chain.head, len(self.chain), self.chain.roster
        if self.chain.is_finished:
            await self._bring_up_to_date(roster)
            return
        if self._me in roster or not roster:
            await self._bring_up_to_date(roster)
        coordinator = self._next_coordinator(roster)
        self._events.on_phase("waiting" if self._me in roster or not roster else "joining")
        try:
            await self._follow(coordinator, head)
        except NotInvited as error:
            await self._without_invitation(error, coordinator, head)
        except StandsElsewhere as error:
            await self._after_elsewhere(error, coordinator, head)
        except (ProtocolViolation, NoPlan) as error:
            if isinstance(error, NoPlan) and not roster:
                self._keep_to(coordinator)
                return
            log.warning("round=%d view=%d %s", length, self._view, error)
            if roster or isinstance(error, ProtocolViolation):
                self._suspect(coordinator, str(error))
            await self._next_view(head, coordinator)
        except (RoundFailed, TransportError) as error:
            log.info("round=%d view=%d ended early: %s", length, self._view, error)
            await self._next_view(head, coordinator)

    def _next_coordinator(self, roster: tuple[PeerId, ...]) -> PeerId:
        """Whose turn it is in this view, or in the next one where that is a suspect's."""
        order = coordinators(self.chain.head, roster or self._founders())
        suspects = self._suspects.at(self._now()) - {self._me}
        for _ in order:
            if order[self._view % len(order)] not in suspects:
                break
            self._view += 1
        return order[self._view % len(order)]

    def _keep_to(self, coordinator: PeerId) -> None:
        """Founders gather at one peer, so nobody leaves it for having to wait; only in the end."""
        self._num_no_plans = self._num_no_plans + 1 if self._awaited == coordinator else 1
        self._awaited = coordinator
        if self._num_no_plans >= MAX_NO_PLANS:
            self._num_no_plans = 0
            self._avoided[coordinator] = self._now() + AVOID_S

    async def _next_view(self, head: bytes, coordinator: PeerId) -> None:
        """Give the votes that are under way a moment; then it is the next coordinator's turn."""
        if not self.chain.roster:
            self._avoided[coordinator] = self._now() + AVOID_S
        await self._wait_for_growth(head, self._config.beat_s)
        self._num_refusals = 0
        if self.chain.head == head and self.chain.roster:
            self._view += 1

    def _suspect(self, peer: PeerId, reason: str) -> None:
        if peer != self._me:
            self._suspects.note(peer, reason, self._now())

    def _founders(self) -> set[PeerId]:
        """Who may found the job, without those that could not be reached a moment ago.

        In the first round there is no roster that fixes an order of coordinators, and everybody
        knows of others at another time: so all keep coming back to the first whom they reach.
        """
        now = self._now()
        avoided = {peer for peer, until in self._avoided.items() if until > now}
        return (self._events.founders() - avoided - self._suspects.at(now)) | {self._me}

    async def _follow(self, coordinator: PeerId, head: bytes) -> None:
        """Follow the coordinator until the chain has grown. Raises what ended it before."""
        member = Member(
            self._me,
            self._clock,
            self._config,
            self._replica,
            self._averager,
            self._work,
            MemberEvents(
                partial(self._on_plan, coordinator), self._on_member_phase, self._on_staged
            ),
        )
        ready = Ready(
            job_id=self.chain.job_id,
            length=len(self.chain),
            head=head,
            view=self._view,
            slots_per_s=self._replica.slots_per_s,
            carried=self._work.carried,
        )
        timeout_s = PLAN_S if self.chain.roster else FOUNDING_S
        self._ready_at = self._now()
        try:
            async with self._stream_to(coordinator, ready) as stream:
                following = asyncio.create_task(
                    member.follow(stream, ready, self.chain, plan_timeout_s=timeout_s)
                )
                await self._until_grown(following, head, coordinator)
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            self._plan = None
            self._is_averaging = False
            self._chair.left_round()
            self._rivals.wake()

    async def _until_grown(
        self, following: asyncio.Task[None], head: bytes, coordinator: PeerId
    ) -> None:
        patience_s = PLAN_S + ROUND_SLACK * self._round_timeout.timeout_s
        growing = asyncio.create_task(self._wait_for_growth(head, patience_s))
        try:
            await asyncio.wait({following, growing}, return_when=asyncio.FIRST_COMPLETED)
            if self.chain.head == head:
                if growing.done():
                    self._suspect(coordinator, f"a round without an end in {patience_s:.0f} s")
                    raise RoundFailed(f"the round has taken more than {patience_s:.0f} s")
                await following
        finally:
            for task in (following, growing):
                task.cancel()
            await asyncio.gather(following, growing, return_exceptions=True)

    @asynccontextmanager
    async def _stream_to(self, coordinator: PeerId, ready: Ready) -> AsyncIterator[Stream]:
        if coordinator != self._me:
            stream = await self._open(coordinator)
            try:
                yield stream
            finally:
                await stream.close()
            return
        near, far = local_pair(self._me)
        attending = asyncio.create_task(self._chair.attend(far, ready))
        attending.add_done_callback(lambda _: self._spawn(far.close()))
        try:
            yield near
        finally:
            await near.close()
            await far.close()
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)

    async def _open(self, coordinator: PeerId) -> Stream:
        try:
            async with asyncio.timeout(self._config.silence_s):
                return await self._transport.open(coordinator, self._round_protocol)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(coordinator)} cannot be reached in time") from error

    async def _on_plan(self, coordinator: PeerId, plan: Round, record: bytes) -> None:
        self._chair.saw_plan(plan, record, coordinator)
        if self.chain.roster:
            self._view = plan.view
        self._plan = plan
        self._planned_at = self._now()
        certificate = self._ballot.admit(self.chain, plan)
        if certificate is not None:
            self._spawn(self._extend(certificate))
        await self._bring_up_to_date(plan.members)

    def _on_member_phase(self, phase: str) -> None:
        self._is_averaging = phase == "averaging"
        self._events.on_phase(phase)

    async def _on_staged(self, result: RoundResult) -> None:
        async with self._staging:
            self._staged = result.state
            self._staging.notify_all()
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
                self._transport,
                peer,
                self._vote_protocol,
                cast,
                Counted,
                timeout_s=VOTE_TIMEOUT_S,
            )
        except (TransportError, ProtocolViolation) as error:
            log.debug("vote not delivered: %s", error)

    # --- votes and growth ---------------------------------------------------------------------

    async def _on_vote(self, peer: PeerId, cast: VoteCast) -> Counted:
        if cast.vote.peer != peer:
            raise ProtocolViolation(peer, "somebody else's vote")
        if cast.result.index > len(self.chain):
            self._rivals.note(peer)
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
        """Apply a certified round: the one vote that ends it. Goes on where it is cancelled."""
        await asyncio.shield(self._spawn(self._append(certificate)))

    async def _append(self, certificate: Certificate) -> None:
        await self._finish_averaging(certificate.result)
        async with self._extending:
            if certificate.result.parent != self.chain.head:
                return
            self.chain.extend(certificate)
            self._turn_to_head()
            await self._apply(certificate.result)
            await self._tell_growth()
        await self._events.on_round(certificate)

    async def _finish_averaging(self, result: RoundResult) -> None:
        """Others were faster: come to the same result rather than fetch the whole state."""
        if not self._is_averaging or self._plan is None or not follows(result, self._plan):
            return
        patience_s = max(FINISH_S, FINISH_SHARE * (self._now() - self._planned_at))
        try:
            async with asyncio.timeout(patience_s), self._staging:
                await self._staging.wait_for(lambda: self._staged == result.state)
        except TimeoutError:
            return

    async def _apply(self, result: RoundResult) -> None:
        """Bring replica and local work behind a certified round."""
        is_merged = any(share.peer == self._me for share in result.contributions)
        is_here = await self._replica.commit(result.state, is_merged=is_merged)
        if is_merged:
            self._work.carried = ()
        elif overlaps(self._work.carried, self.chain.done):
            await self._replica.drop_local()
            self._work.carried = ()
        log.info(
            "certified round=%d members=%d contributors=%d applied=%s",
            result.index,
            len(result.members),
            len(result.contributions),
            is_here,
        )

    def _turn_to_head(self) -> None:
        """The chain has just changed: others may already come for its next round."""
        if self._plan is not None:
            self._round_timeout.observe(self._now() - self._planned_at)
        self._view = 0
        self._num_refusals = 0
        self._grew_at = self._now()
        for peer in self._idlers():
            self._suspect(peer, f"a member of {IDLE_ROUNDS} rounds without any contribution")
        self._chair.grew()

    async def _tell_growth(self) -> None:
        """Chain and replica agree again: go on to the next round."""
        async with self._grown:
            self._grown.notify_all()

    def _idlers(self) -> set[PeerId]:
        """Each round waits for those who are never done; so not for ever."""
        for_all = self._config.inner_steps * len(self.chain.roster)
        return idlers(self.chain, num_rounds=IDLE_ROUNDS, num_needed=for_all)

    async def _wait_for_growth(self, head: bytes, timeout_s: float | None) -> None:
        """Return when the chain stands elsewhere than at this head, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._grown:
                await self._grown.wait_for(lambda: self.chain.head != head)
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

    async def _switch(self, theirs: Chain) -> bool:
        """Take over a checked chain if it is to be followed, and tell whether it was."""
        return await asyncio.shield(self._spawn(self._take_over(theirs)))

    async def _take_over(self, theirs: Chain) -> bool:
        async with self._extending:
            if not replaces(theirs, self.chain, least_members=self._least_members()):
                return False
            split = split_of(theirs, self.chain)
            is_split = split < len(self.chain)
            log.info(
                "%s rounds=%d slots=%d",
                "switched to another chain" if is_split else "caught up",
                len(theirs),
                theirs.num_done,
            )
            self.chain = theirs
            self._turn_to_head()
            if is_split:
                await self._replica.drop_local()
                self._work.carried = ()
            for certificate in theirs.certificates[split:]:
                await self._apply(certificate.result)
            await self._tell_growth()
        await self._events.on_round(theirs.certificates[-1])
        return True

    def _least_members(self) -> int:
        """How many members the next round must have for this peer to believe in it unseen.

        One peer alone may certify a round with itself alone; it is only right where the others
        are gone. So whoever is about to certify a round with more of them does not follow it.
        """
        if self._plan is not None and self._me in self._plan.members:
            return len(self._plan.members)
        roster = self.chain.roster
        if self._me in roster and self._now() - self._grew_at < MINORITY_S:
            return len(roster) // 2 + 1
        return 0

    # --- turned away --------------------------------------------------------------------------

    async def _after_elsewhere(
        self, error: StandsElsewhere, coordinator: PeerId, head: bytes
    ) -> None:
        """It has more links, fewer or others: compare, and do not come back for ever."""
        is_ahead = error.length >= len(self.chain)
        if is_ahead:
            self._rivals.note(coordinator)
        if not self._rivals.is_looking_at(coordinator):
            self._num_refusals += 1
        if self._num_refusals <= MAX_REFUSALS:
            await self._wait_for_growth(head, self._config.beat_s)
            return
        if is_ahead and self.chain.roster:
            self._suspect(coordinator, "it says that it has another chain, and shows none")
        await self._next_view(head, coordinator)

    async def _without_invitation(
        self, error: NotInvited, coordinator: PeerId, head: bytes
    ) -> None:
        """A round runs without this peer, which waits for the next one unless that is a trick."""
        plan, roster = error.plan, self.chain.roster
        came_in_time = self._ready_at - self._grew_at < GATHER_FLOOR_S
        is_small = not has_quorum(len(plan.members), len(roster))
        if error.is_hearsay and self._me in plan.members:
            self._num_refusals += 1
            if self._num_refusals <= MAX_REFUSALS:
                self._view = plan.view  # only the connection to its coordinator had failed
                await self._wait_for_growth(head, self._config.beat_s)
                return
        elif (
            error.is_hearsay or self._me not in roster or not (came_in_time and is_small)
        ) and await self._wait_outside(plan, head):
            return
        if roster:
            self._suspect(coordinator, "it keeps this peer out of a round")
        await self._next_view(head, coordinator)

    async def _wait_outside(self, plan: Round, head: bytes) -> bool:
        """Ask members of the round to be let into the next one. False if the round does not end."""
        self._events.on_phase("joining")
        others = [peer for peer in plan.members if peer != self._me][:NUM_POLLED]
        patience_s = PLAN_S + ROUND_SLACK * self._round_timeout.timeout_s
        polls = [asyncio.create_task(self._poll(peer, head)) for peer in others]
        try:
            await self._wait_for_growth(head, patience_s)
        finally:
            for task in polls:
                task.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
        return self.chain.head != head

    async def _poll(self, peer: PeerId, head: bytes) -> None:
        """Wait for the next link with one of the round's members, for as long as it takes."""
        length = len(self.chain)
        while self.chain.head == head:
            asked = self._now()
            try:
                page = await self._chain_sync.read(peer, length, wait_s=20.0, wants_in=True)
                if page.certificates and self.chain.head == head:
                    await self._switch(longer(self.chain, page.certificates))
            except (TransportError, ProtocolViolation) as error:
                log.debug("polling peer=%s: %s", short(peer), error)
            pause_s = self._config.beat_s if self._now() - asked > 1.0 else self._config.silence_s
            await self._wait_for_growth(head, pause_s)

    # --- others come --------------------------------------------------------------------------

    async def _attend(self, stream: Stream) -> None:
        """Somebody takes this peer for the coordinator of its next round."""
        ready = await self._chair.receive_ready(stream)
        if ready.length == len(self.chain) + 1:
            await self._wait_for_growth(self.chain.head, self._config.silence_s / 2)
        if ready.length >= len(self.chain) and ready.head != self.chain.head:
            self._rivals.note(stream.peer_id, ready.head)
        await self._chair.attend(stream, ready)

    # --- housekeeping -------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _deliver_votes(self) -> None:
        """The last votes are still under way: without them others would lack the last round."""
        if self._background:
            await asyncio.wait(self._background, timeout=self._config.silence_s)

    async def _close(self) -> None:
        await self._chair.close()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a group of failed tasks is about; bugs come before faults."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=lambda error: isinstance(error, ZoonetError | TimeoutError))
