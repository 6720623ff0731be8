"""One peer's part in a job, from joining it to the last certified round.

`Participant` plays one round after the other. Its parts have one idea each: `growth` the chain and
the state behind it, `votes` what certifies a round, `turns` whom to follow, `attendance` one round
at its coordinator, `outside` what to do when turned away; `chair` is where others come when it is
this peer's turn, `rivals` looks at other chains, `roll_call` at who is there to found the job.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from zoonet.averaging.allreduce import Averager
from zoonet.averaging.attendance import Attendance
from zoonet.averaging.chain import Chain, idlers
from zoonet.averaging.chain_sync import ChainSync
from zoonet.averaging.chair import GATHER_FLOOR_S, Chair
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.gear import Errands, Gear, ParticipantEvents
from zoonet.averaging.growth import Growth
from zoonet.averaging.member import NoPlan, NotInvited, StandsElsewhere
from zoonet.averaging.outside import Outside
from zoonet.averaging.replica import Replica
from zoonet.averaging.rivals import Rivals
from zoonet.averaging.roll_call import RollCall
from zoonet.averaging.site_mean import SiteMean
from zoonet.averaging.suspects import Suspects
from zoonet.averaging.turns import Turns
from zoonet.averaging.votes import Votes
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId
from zoonet.errors import (
    ProtocolViolation,
    RoundFailed,
    ShardUnavailable,
    TransportError,
)
from zoonet.ranges import count
from zoonet.transport import Stream, Transport

FAREWELL_S: Final = 20.0  # how long the final state of a finished job is looked for
CATCH_UP_S: Final = 30.0  # in all, for a look at the chains there are, before founding another
ROLL_CALL_S: Final = 4.0  # for who wants the job to answer, before it is founded without them
BEYOND: Final = 2**40  # links that no chain has: asked for those, a peer says where it stands
IDLE_ROUNDS: Final = 3  # that a member may go without a contribution

log = logging.getLogger(__name__)


def early_end(chain: Chain) -> str:
    """Say in words what a job that ended early lacks."""
    return (
        f"ended early: {count(chain.free)} data slots could not be trained, beside "
        f"{count(chain.skipped)} that were skipped; see the data and inner_lr"
    )


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
        site: SiteMean | None = None,
    ) -> None:
        self._me = identity.peer_id
        self._config = config
        self._errands = Errands()
        self._gear = gear = Gear(
            identity=identity,
            clock=clock,
            transport=transport,
            replica=replica,
            averager=averager,
            config=config,
            events=events,
            errands=self._errands,
            site=site,
        )
        self._growth = growth = Growth(gear, chain, self._on_head)
        self._look_until = 0.0  # until then a job is not founded before all chains are looked at
        suspects = Suspects()
        self._roll_call = RollCall(
            self._current_chain,
            lambda: events.founders() - {self._me},
            self._ask,
            answer_s=config.silence_s,
        )
        self._turns = turns = Turns(
            self._me, self._roll_call.present, suspects, num_needed=config.min_founders
        )
        self._chair = Chair(
            identity,
            clock,
            config,
            self._current_chain,
            lambda: turns.founders(self._now()),
            suspects,
            replica.num_parameters,
        )
        self._chain_sync = ChainSync(
            transport, self._current_chain, growth.grown, self._chair.apply
        )
        self._rivals = Rivals(
            self._chain_sync, self._current_chain, growth.switch, lambda: growth.plan is None
        )
        self._votes = Votes(gear, self._current_chain, growth.extend, self._rivals.note)
        self._attendance = Attendance(gear, growth, self._votes, turns, self._chair)
        self._outside = Outside(gear, growth, turns, self._rivals, self._chain_sync)

    @property
    def chain(self) -> Chain:
        """The certified rounds, as this peer knows them."""
        return self._growth.chain

    def _current_chain(self) -> Chain:
        return self._growth.chain

    async def serve(self) -> None:
        """Begin to answer others. They may already run while this peer still prepares."""
        await self._chain_sync.serve()
        await self._growth.serve()
        await self._votes.serve()
        await self._gear.transport.serve(self._attendance.protocol, self._attend)

    async def run(self) -> None:
        """Take part until every slot is certified and the replica holds the final state.

        A job whose last slots nobody can train ends early: see `Chain.is_stuck`.
        Raises TrainingError, or ShardUnavailable where the job is finished and nobody hands out
        its final state for FAREWELL_S: the others have published the model and gone.
        """
        growth = self._growth
        growth.begin()
        self._look_until = self._now() + CATCH_UP_S
        looking = asyncio.create_task(self._rivals.run())
        calling = asyncio.create_task(self._roll_call.run())
        try:
            if not self.chain.roster:
                await self._roll_call.settled(ROLL_CALL_S)
            while not (self.chain.is_over and growth.is_up_to_date):
                head = self.chain.head
                for task in (looking, calling):
                    if task.done():
                        task.result()  # it may have ended by a bug
                try:
                    await self._play()
                except (RoundFailed, TransportError, ProtocolViolation) as error:
                    log.info("round=%d view=%d %s", len(self.chain), self._turns.view, error)
                    if self.chain.is_over and self._now() - growth.grew_at > FAREWELL_S:
                        raise ShardUnavailable("the job is finished, its state is gone") from error
                    await growth.wait(head, self._config.beat_s)
            # Without the last votes, which are still under way, others would lack the last round.
            await self._errands.settle(self._config.silence_s)
            if self.chain.is_stuck:
                log.warning("%s", early_end(self.chain))
        finally:
            for task in (looking, calling):
                task.cancel()
            await asyncio.gather(looking, calling, return_exceptions=True)
            await self._chair.close()
            await self._errands.close()

    def hint(self, peer: PeerId, num_done: int, head: bytes) -> None:
        """Somebody says where its chain stands; if that is elsewhere it is looked at."""
        if peer != self._me and num_done > 0:
            self._rivals.note(peer, head)

    # --- one round ----------------------------------------------------------------------------

    async def _play(self) -> None:
        await self._growth.settled()  # a round that is being applied comes first
        if not self.chain.roster and self._now() < self._look_until:
            await self._rivals.settled(self._look_until - self._now())
        head, roster = self.chain.head, self.chain.roster
        is_inside = self._me in roster or not roster
        if self.chain.is_over or is_inside:
            await self._growth.bring_up_to_date(roster)
        if self.chain.is_over or self.chain.head != head:
            return
        unix_s = self._gear.clock.now()
        coordinator = self._turns.coordinator(self.chain, self._now(), unix_s)
        self._gear.events.on_phase("waiting" if is_inside else "joining")
        try:
            await self._follow(coordinator, head)
        except NotInvited as error:
            came_in_time = self._attendance.ready_at - self._growth.grew_at < GATHER_FLOOR_S
            if not await self._outside.without_invitation(
                error, coordinator, head, came_in_time=came_in_time
            ):
                await self._next_view(head, coordinator)
        except StandsElsewhere as error:
            if not await self._outside.after_elsewhere(error, coordinator, head):
                await self._next_view(head, coordinator)
        except (RoundFailed, TransportError, ProtocolViolation) as error:
            await self._after_failure(error, coordinator, head, is_founding=not roster)

    async def _follow(self, coordinator: PeerId, head: bytes) -> None:
        try:
            await self._attendance.follow(coordinator, head)
        finally:
            self._growth.leave_round()
            self._chair.left_round()
            self._rivals.wake()

    async def _after_failure(
        self, error: Exception, coordinator: PeerId, head: bytes, *, is_founding: bool
    ) -> None:
        """The round has ended without a certificate, as far as this peer has seen."""
        is_violation = isinstance(error, ProtocolViolation)
        if is_founding and not is_violation and self._attendance.is_waiting:
            self._turns.keep_to(coordinator, self._now())
            if not isinstance(error, NoPlan):
                await self._growth.wait(head, self._config.beat_s)
            return
        is_fault = is_violation or (isinstance(error, NoPlan) and not is_founding)
        log.log(
            logging.WARNING if is_fault else logging.INFO,
            "round=%d view=%d ended early: %s",
            len(self.chain),
            self._turns.view,
            error,
        )
        if is_fault:
            self._turns.suspect(coordinator, str(error), self._now())
        await self._next_view(head, coordinator)

    async def _ask(self, peer: PeerId) -> None:
        """Ask a peer where it stands. Raises TransportError or ProtocolViolation."""
        page = await self._chain_sync.read(peer, BEYOND)
        if page.length:
            self._rivals.note(peer, page.head)

    async def _next_view(self, head: bytes, coordinator: PeerId) -> None:
        """Give the votes that are under way a moment; then it is the next coordinator's turn."""
        if not self.chain.roster:
            self._turns.avoid(coordinator, self._now())
        await self._growth.wait(head, self._config.beat_s)
        self._turns.pass_on(is_next=self.chain.head == head and bool(self.chain.roster))

    def _on_head(self) -> None:
        """The chain has just changed: its next round begins with the first view."""
        self._turns.start_over()
        for_all = self._config.inner_steps * len(self.chain.roster)
        for peer in idlers(self.chain, num_rounds=IDLE_ROUNDS, num_needed=for_all):
            # Each round waits for those who are never done; so not for ever.
            reason = f"a member of {IDLE_ROUNDS} rounds without any contribution"
            self._turns.suspect(peer, reason, self._now())
        self._chair.grew()

    # --- others come --------------------------------------------------------------------------

    async def _attend(self, stream: Stream) -> None:
        """Somebody takes this peer for the coordinator of its next round."""
        ready = await self._chair.receive_ready(stream)
        self._roll_call.knocked(stream.peer_id)
        if ready.length == len(self.chain) + 1:
            await self._growth.wait(self.chain.head, self._config.silence_s / 2)
        if ready.length >= len(self.chain) and ready.head != self.chain.head:
            self._rivals.note(stream.peer_id, ready.head)
        await self._chair.attend(stream, ready)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
