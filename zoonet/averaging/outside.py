"""A coordinator has sent this peer away: bear with it, wait at the door, or do without it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from zoonet.averaging.chain import has_quorum, longer
from zoonet.averaging.chain_sync import ChainSync
from zoonet.averaging.gear import Gear
from zoonet.averaging.growth import Growth
from zoonet.averaging.member import NotInvited, StandsElsewhere
from zoonet.averaging.messages import Round
from zoonet.averaging.rivals import Rivals
from zoonet.averaging.turns import Turns
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, TransportError

NUM_POLLED: Final = 4

log = logging.getLogger(__name__)


class Outside:
    """Each method returns whether to come back in the same view; else the next one begins."""

    def __init__(
        self, gear: Gear, growth: Growth, turns: Turns, rivals: Rivals, chain_sync: ChainSync
    ) -> None:
        self._gear = gear
        self._growth = growth
        self._turns = turns
        self._rivals = rivals
        self._chain_sync = chain_sync

    async def after_elsewhere(
        self, error: StandsElsewhere, coordinator: PeerId, head: bytes
    ) -> bool:
        """It has more links, fewer or others: compare, and do not come back for ever."""
        is_ahead = error.length >= len(self._growth.chain)
        if is_ahead:
            self._rivals.note(coordinator)
        if not self._rivals.is_looking_at(coordinator):
            self._turns.note_refusal()
        if self._turns.has_patience:
            await self._growth.wait(head, self._gear.config.beat_s)
            return True
        if is_ahead and self._growth.chain.roster:
            reason = "it says that it has another chain, and shows none"
            self._turns.suspect(coordinator, reason, self._now())
        return False

    async def without_invitation(
        self, error: NotInvited, coordinator: PeerId, head: bytes, *, came_in_time: bool
    ) -> bool:
        """A round runs without this peer, which waits for the next one unless that is a trick."""
        me, plan, roster = self._gear.me, error.plan, self._growth.chain.roster
        is_small = not has_quorum(len(plan.members), len(roster))
        if error.is_hearsay and me in plan.members:
            self._turns.note_refusal()
            if self._turns.has_patience:
                self._turns.view = plan.view  # only the connection to its coordinator had failed
                await self._growth.wait(head, self._gear.config.beat_s)
                return True
        elif (
            error.is_hearsay or me not in roster or not (came_in_time and is_small)
        ) and await self._wait_at_the_door(plan, head):
            return True
        if roster:
            self._turns.suspect(coordinator, "it keeps this peer out of a round", self._now())
        return False

    async def _wait_at_the_door(self, plan: Round, head: bytes) -> bool:
        """Ask members of the round to be let into the next one. False if the round does not end."""
        self._gear.events.on_phase("joining")
        others = [peer for peer in plan.members if peer != self._gear.me][:NUM_POLLED]
        polls = [asyncio.create_task(self._poll(peer, head)) for peer in others]
        try:
            await self._growth.wait(head, self._growth.patience_s)
        finally:
            for task in polls:
                task.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
        return self._growth.chain.head != head

    async def _poll(self, peer: PeerId, head: bytes) -> None:
        """Wait for the next link with one of the round's members, for as long as it takes."""
        config = self._gear.config
        length = len(self._growth.chain)
        while self._growth.chain.head == head:
            asked = self._now()
            try:
                page = await self._chain_sync.read(peer, length, wait_s=20.0, wants_in=True)
                if page.certificates and self._growth.chain.head == head:
                    await self._growth.switch(longer(self._growth.chain, page.certificates))
            except (TransportError, ProtocolViolation) as error:
                log.debug("polling peer=%s: %s", short(peer), error)
            pause_s = config.beat_s if self._now() - asked > 1.0 else config.silence_s
            await self._growth.wait(head, pause_s)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
