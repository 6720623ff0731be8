"""How a peer's chain grows: rounds are applied, heavier chains taken over, states fetched.

The chain and the replica change here and nowhere else, one change after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from zoonet.averaging.chain import Chain, replaces, split_of
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.gear import Gear, first_error
from zoonet.averaging.messages import Certificate, Round, RoundResult
from zoonet.averaging.rules import follows
from zoonet.averaging.state_sync import StateSync
from zoonet.crypto import PeerId
from zoonet.errors import ShardUnavailable
from zoonet.ranges import Ranges, difference, listed, overlaps, union

PLAN_S: Final = 45.0  # for a plan; a coordinator gathers for 30 s at most
MINORITY_S: Final = 60.0  # before a round is believed in that most of the roster has no part in
FINISH_S: Final = 2.0  # to finish a round that the others have certified
FINISH_SHARE: Final = 0.25  # or this share of what it has taken so far
ROUND_SLACK: Final = 2.0  # of the learned duration of a round, before it is given up

log = logging.getLogger(__name__)


class Growth:
    """The chain as this peer holds it, with the replica and the local work on top of it.

    `on_head` is called as soon as the chain has another head, before the replica has followed.
    """

    def __init__(self, gear: Gear, chain: Chain, on_head: Callable[[], None]) -> None:
        self.chain = chain
        self._leased: Ranges = ()  # to this peer by the last plan that it took part in
        self.failed: Ranges = ()  # slots that it could not train, since the last certified round
        self.plan: Round | None = None  # of the round that this peer takes part in
        self.is_averaging = False
        self.grown = asyncio.Condition()  # told when chain and replica agree about a new head
        self.grew_at = 0.0
        self._planned_at = 0.0
        self._gear = gear
        self._replica = gear.replica
        self._on_head = on_head
        self._extending = asyncio.Lock()
        self._staging = asyncio.Condition()
        self._staged = b""  # the state that the replica has staged last
        self._round_timeout = LearnedTimeout(first_s=600.0, floor_s=30.0, ceiling_s=7200.0)
        self._state_sync = StateSync(gear.transport, chain.job_id, gear.replica)

    async def serve(self) -> None:
        """Begin to hand out the state."""
        await self._state_sync.serve()

    def begin(self) -> None:
        """From now on the next head is awaited."""
        self.grew_at = self._now()

    # --- the round under way ------------------------------------------------------------------

    def enter_round(self, plan: Round) -> None:
        """This peer takes part in the round of that plan."""
        self.plan = plan
        self._leased = plan.slots_of(self._gear.me)
        self._planned_at = self._now()

    def claim(self) -> Ranges:
        """Slots that were leased to this peer, and which it may have trained already."""
        failed = self.chain.poison.by_peer.get(self._gear.me, ())
        gone = (*self.chain.done, *self.chain.skipped, *self.chain.hopeless, *failed)
        return difference(self._leased, gone)

    def note_failed(self, slots: Ranges) -> None:
        """These slots cannot be trained here: no use to try again before others have."""
        self.failed = union(self.failed, slots)

    def leave_round(self) -> None:
        """It does so no longer."""
        self.plan = None
        self.is_averaging = False

    async def note_staged(self, state: bytes) -> None:
        """The replica has staged what the round under way comes to."""
        async with self._staging:
            self._staged = state
            self._staging.notify_all()

    @property
    def patience_s(self) -> float:
        """How long a round may take, from coming to its coordinator to its certificate."""
        return PLAN_S + ROUND_SLACK * self._round_timeout.timeout_s

    # --- waiting ------------------------------------------------------------------------------

    async def wait(self, head: bytes, timeout_s: float | None) -> None:
        """Return when the chain stands elsewhere than at this head, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self.grown:
                await self.grown.wait_for(lambda: self.chain.head != head)
        except TimeoutError:
            return

    async def settled(self) -> None:
        """Return when no round is being applied."""
        async with self._extending:
            pass

    # --- a certified round --------------------------------------------------------------------

    async def extend(self, certificate: Certificate) -> None:
        """Apply a certified round: the one vote that ends it. Goes on where it is cancelled."""
        await asyncio.shield(self._gear.errands.spawn(self._append(certificate)))

    async def _append(self, certificate: Certificate) -> None:
        await self._finish_averaging(certificate.result)
        async with self._extending:
            if certificate.result.parent != self.chain.head:
                return
            skipped = self.chain.skipped
            self.chain.extend(certificate)
            if new := difference(self.chain.skipped, skipped):
                log.warning("skipped slots=%s: two tries at each have failed", listed(new))
            self._turn_to_head()
            await self._apply(certificate.result)
            await self._tell_growth()
        await self._gear.events.on_round(certificate)

    async def _finish_averaging(self, result: RoundResult) -> None:
        """Others were faster: come to the same result rather than fetch the whole state."""
        if not self.is_averaging or self.plan is None or not follows(result, self.plan):
            return
        patience_s = max(FINISH_S, FINISH_SHARE * (self._now() - self._planned_at))
        try:
            async with asyncio.timeout(patience_s), self._staging:
                await self._staging.wait_for(lambda: self._staged == result.state)
        except TimeoutError:
            return

    async def _apply(self, result: RoundResult) -> None:
        """Bring replica and local work behind a certified round."""
        is_merged = any(share.peer == self._gear.me for share in result.contributions)
        is_here = await self._replica.commit(result.state, is_merged=is_merged)
        self._gear.averager.settle(is_certified=True, is_merged=is_merged)
        if overlaps(self._replica.carried, self.chain.done):
            await self._replica.drop_local()
        elif not is_merged and self._is_counted(result):
            log.info(
                "round=%d holds the work of neighbours that this peer's has in it", result.index
            )
            await self._replica.drop_local()
        log.info(
            "certified round=%d members=%d contributors=%d applied=%s",
            result.index,
            len(result.members),
            len(result.contributions),
            is_here,
        )

    def _is_counted(self, result: RoundResult) -> bool:
        """Whether work of neighbours counts now that a site's mean has put into this peer's."""
        site = self._gear.site
        shares = result.contributions
        return site is not None and any(share.peer in site.mixed_with for share in shares)

    def _turn_to_head(self) -> None:
        """The chain has just changed: others may already come for its next round."""
        if self.plan is not None:
            self._round_timeout.observe(self._now() - self._planned_at)
        self.grew_at = self._now()
        self.failed = ()
        self._on_head()

    async def _tell_growth(self) -> None:
        """Chain and replica agree again: go on to the next round."""
        async with self.grown:
            self.grown.notify_all()

    # --- another chain ------------------------------------------------------------------------

    async def switch(self, theirs: Chain) -> bool:
        """Take over a checked chain if it is to be followed, and tell whether it was."""
        return await asyncio.shield(self._gear.errands.spawn(self._take_over(theirs)))

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
            theirs.certificates.keep()
            self.chain = theirs
            self._turn_to_head()
            if is_split:
                await self._replica.drop_local()
                self._leased = ()
            for index in range(split, len(theirs)):
                await self._apply(theirs.certificates[index].result)
            await self._tell_growth()
        await self._gear.events.on_round(theirs.certificates[-1])
        return True

    def _least_members(self) -> int:
        """How many members the next round must have for this peer to believe in it unseen.

        One peer alone may certify a round with itself alone; it is only right where the others
        are gone. So whoever is about to certify a round with more of them does not follow it.
        """
        if self.plan is not None and self._gear.me in self.plan.members:
            return len(self.plan.members)
        roster = self.chain.roster
        if self._gear.me in roster and self._now() - self.grew_at < MINORITY_S:
            return len(roster) // 2 + 1
        return 0

    # --- the state behind it ------------------------------------------------------------------

    @property
    def is_up_to_date(self) -> bool:
        """Tell whether the replica holds the state at the chain's head."""
        last = self.chain.last
        return last is None or self._replica.state_digest == last.state

    async def bring_up_to_date(self, donors: tuple[PeerId, ...]) -> None:
        """Fetch the state at the chain's head where the replica holds another one.

        Raises ShardUnavailable where none of the donors has it.
        """
        last = self.chain.last
        if last is None or self.is_up_to_date:
            return
        self._gear.events.on_phase("joining")
        others = [peer for peer in donors if peer != self._gear.me]
        if not others:
            raise ShardUnavailable("nobody is left who holds the state at the chain's head")
        try:
            await self._state_sync.fetch(last.state, others)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
