"""The coordinator's chair: who is let in to whose round, and who is sent elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import msgpack

from zoonet.averaging.chain import Chain
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.coordinator import Coordinator, RoundSeat
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.messages import (
    MAX_VIEW,
    MESSAGE_BYTES,
    Busy,
    Elsewhere,
    Ready,
    Round,
    decode_from_member,
)
from zoonet.averaging.suspects import Suspects
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId
from zoonet.errors import PeerTimeout, ProtocolViolation, RoundFailed
from zoonet.ranges import Ranges, union
from zoonet.transport import Stream

MAX_APPLICANTS: Final = 64
APPLICATION_S: Final = 60.0
OPENING_S: Final = 10.0  # for a stream's first message
KNOWN_PLANS: Final = 8
GATHER_FLOOR_S: Final = 2.0  # for those of the roster who are not there yet
GATHER_CEILING_S: Final = 30.0

log = logging.getLogger(__name__)


class Chair:
    """Holds at most one seat: the coordination of the next round, if it falls to this peer."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        config: RoundsConfig,
        chain: Callable[[], Chain],
        founders: Callable[[], set[PeerId]],
        suspects: Suspects,
        num_parameters: int,
    ) -> None:
        self._identity = identity
        self._me = identity.peer_id
        self._clock = clock
        self._config = config
        self._chain = chain
        self._founders = founders
        self._suspects = suspects
        self._num_parameters = num_parameters
        self._gather_timeout = LearnedTimeout(
            first_s=15.0, floor_s=GATHER_FLOOR_S, ceiling_s=GATHER_CEILING_S
        )
        self._applications: dict[PeerId, float] = {}
        self._seat: Coordinator | None = None
        self._leading: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._plans: list[Round] = []
        self._lost_at: dict[PeerId, bytes] = {}  # members that went away, and after which head
        self._elsewhere = b""
        self._elsewhere_parent = b""

    # --- who comes ----------------------------------------------------------------------------

    def apply(self, peer: PeerId) -> None:
        """A peer asks to be let into the next round."""
        if len(self._applications) < MAX_APPLICANTS or peer in self._applications:
            self._applications[peer] = self._now()

    def _applicants(self) -> set[PeerId]:
        """Who asked lately to be let in; in the first round everyone known to want the job."""
        roster = self._chain().roster
        if not roster:
            return self._founders() | {self._me}
        for peer, asked in list(self._applications.items()):
            if self._now() - asked > APPLICATION_S or peer in roster:
                del self._applications[peer]
        return set(self._applications)

    async def receive_ready(self, stream: Stream) -> Ready:
        """Read how a round's stream opens. Raises ProtocolViolation or TransportError."""
        try:
            async with asyncio.timeout(OPENING_S):
                ready = decode_from_member(await stream.receive(MESSAGE_BYTES))
        except TimeoutError as error:
            raise PeerTimeout("a stream that was opened and not used") from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ProtocolViolation(stream.peer_id, f"a malformed message: {error}") from error
        if not isinstance(ready, Ready) or ready.job_id != self._chain().job_id:
            raise ProtocolViolation(stream.peer_id, "a round's stream must open with Ready")
        return ready

    async def attend(self, stream: Stream, ready: Ready) -> None:
        """Somebody takes this peer for the coordinator of its next round."""
        chain = self._chain()
        if (ready.length, ready.head) != (len(chain), chain.head):
            await self._say_elsewhere(stream)
        elif (
            self._elsewhere and self._elsewhere_parent == chain.head and stream.peer_id != self._me
        ):
            await stream.send(msgpack.encode(Busy(record=self._elsewhere)))
        elif self._is_mine(ready.view) and not chain.is_over:
            await self._sit_down(ready.view).attend(stream, ready)
        else:
            await self._say_elsewhere(stream)

    async def _say_elsewhere(self, stream: Stream) -> None:
        message = Elsewhere(length=len(self._chain()), head=self._chain().head)
        await stream.send(msgpack.encode(message))

    def _is_mine(self, view: int) -> bool:
        """Tell whether it is this peer's turn.

        Always before the first round: each founder knows of others, and who comes may wait here
        until this peer takes its own seat or has found another one.
        """
        turns = self._chain().turns
        return not turns or turns[view % len(turns)] == self._me

    # --- the seat -----------------------------------------------------------------------------

    def _sit_down(self, view: int) -> Coordinator:
        """The seat for the round after the chain's head, whatever the view it is asked for in.

        One at a time: a new one is made where there is none, or the last one has ended, under the
        next view that is this peer's turn. A caller cannot choose it.
        """
        chain = self._chain()
        turn = len(chain.roster) or 1
        view %= turn
        last = self._seat
        if last is not None and last.seat.parent == chain.head:
            if not last.is_over:
                return last
            view = min(last.seat.view + turn, MAX_VIEW)
        elif last is not None:  # its round is certified, only `grew` has not been told yet
            last.settle()
            self._retire()
        seat = RoundSeat(
            job_id=chain.job_id,
            index=len(chain),
            view=view,
            parent=chain.head,
            roster=chain.roster,
            free=chain.trainable,
            num_parameters=self._num_parameters,
            suspects=self._suspects.at(self._now()) - {self._me},
            leased=self._leased(),
            failed=chain.poison.by_peer,
        )
        self._seat = Coordinator(
            self._identity, self._clock, self._config, seat, self._gather_timeout, self._applicants
        )
        self._leading = asyncio.create_task(self._lead(self._seat))
        return self._seat

    async def _lead(self, coordinator: Coordinator) -> None:
        seat = coordinator.seat
        try:
            await coordinator.lead()
        except RoundFailed as error:
            log.info("round=%d view=%d given up: %s", seat.index, seat.view, error)
            for peer in error.missing:
                self._suspects.note(PeerId(peer), str(error), self._now())
            self._note_lost(coordinator.lost - error.missing, seat.parent)

    def _note_lost(self, lost: frozenset[PeerId], parent: bytes) -> None:
        """Whoever comes and goes away again costs a view once: the second time it is on purpose.

        Once it may be this peer itself whose connections broke.
        """
        for peer in lost - {self._me}:
            if self._lost_at.get(peer) == parent:
                self._suspects.note(peer, "it has left the same round twice", self._now())
        self._lost_at = dict.fromkeys(lost, parent) | {
            peer: head for peer, head in self._lost_at.items() if head == parent
        }

    def _leased(self) -> dict[PeerId, Ranges]:
        """Slots that recent plans leased, by peer: whose claims to have trained them are known."""
        leased: dict[PeerId, Ranges] = {}
        for plan in self._plans:
            for lease in (*plan.leases, *plan.guests):
                peer = PeerId(lease.peer)
                leased[peer] = union(leased.get(peer, ()), lease.slots)
        return leased

    # --- what happens elsewhere ---------------------------------------------------------------

    def saw_plan(self, plan: Round, record: bytes, coordinator: PeerId) -> None:
        """This peer takes part in a round: who comes here for another one is sent there."""
        self._plans = [*self._plans[-KNOWN_PLANS + 1 :], plan]
        self._elsewhere = b"" if coordinator == self._me else record
        self._elsewhere_parent = plan.parent
        if self._elsewhere and self._seat is not None:
            self._seat.stand_down(self._elsewhere)

    def left_round(self) -> None:
        """This peer no longer takes part in the round that it saw the plan of."""
        self._elsewhere = b""

    def grew(self) -> None:
        """The chain has another head: the seat, if there is one, has nothing left to decide."""
        self._elsewhere = b""
        if self._seat is not None and self._seat.seat.parent != self._chain().head:
            self._seat.settle()
            self._seat = None
            self._retire()

    def _retire(self) -> None:
        """Let a coordinator's streams live on until the votes have reached its followers."""
        leading, self._leading = self._leading, None
        if leading is not None:
            task = asyncio.create_task(self._end(leading))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _end(self, leading: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait({leading}, timeout=self._config.patience.certify_s)
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def close(self) -> None:
        """End all seats: the last ones once their followers have gone, or after a moment."""
        self._retire()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
