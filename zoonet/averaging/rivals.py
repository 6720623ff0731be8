"""Looking at the chains that others say they have, beside the rounds and never instead of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from zoonet.averaging.chain import Chain
from zoonet.averaging.chain_sync import ChainSync
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, TransportError

NUM_AT_ONCE: Final = 4
MAX_WAITING: Final = 128
FIRST_PAUSE_S: Final = 2.0  # before a peer that had nothing to show is looked at again
LONGEST_PAUSE_S: Final = 600.0

log = logging.getLogger(__name__)


class Rivals:
    """Peers whose chain is worth a look. Strangers may name themselves, so all of it is bounded.

    Those of the roster come first; a peer that had nothing better to show waits longer each time.
    `offer` is given a chain that is wholly checked, and returns whether it was taken. While this
    peer is in the middle of a round (not `is_idle`), whose votes will bring the next link anyway,
    nobody is looked at anew.
    """

    def __init__(
        self,
        chain_sync: ChainSync,
        chain: Callable[[], Chain],
        offer: Callable[[Chain], Awaitable[bool]],
        is_idle: Callable[[], bool],
    ) -> None:
        self._chain_sync = chain_sync
        self._chain = chain
        self._offer = offer
        self._is_idle = is_idle
        self._waiting: dict[PeerId, bytes] = {}  # the head it claims, b"" where only a name
        self._pauses: dict[PeerId, tuple[float, float]] = {}  # end and length, in seconds
        self._looking: set[PeerId] = set()
        self._changed = asyncio.Condition()
        self._arrived = asyncio.Event()

    def note(self, peer: PeerId, head: bytes = b"") -> None:
        """This peer may have a better chain."""
        if head in self._chain().heads:
            return
        if peer not in self._waiting and len(self._waiting) >= MAX_WAITING:
            if peer not in self._chain().roster:
                return
            del self._waiting[next(iter(self._waiting))]
        self._waiting[peer] = head
        self._arrived.set()

    def wake(self) -> None:
        """This peer may be idle again."""
        if self._waiting:
            self._arrived.set()

    def is_looking_at(self, peer: PeerId) -> bool:
        """Tell whether this peer's chain is being read just now."""
        return peer in self._looking

    async def run(self) -> None:
        """Look at one after the other until cancelled, some at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(NUM_AT_ONCE):
                tasks.create_task(self._look_at_all())

    async def settled(self, timeout_s: float) -> None:
        """Return when nobody is left to be looked at, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: not self._looking and self._next(self._now()) is None
                )
        except TimeoutError:
            return

    async def _look_at_all(self) -> None:
        while True:
            peer = self._next(self._now())
            if peer is None:
                await self._wait_for_news()
                continue
            head = self._waiting.pop(peer)
            if head in self._chain().heads:
                continue
            self._looking.add(peer)
            try:
                await self._look(peer)
            finally:
                self._looking.discard(peer)
                async with self._changed:
                    self._changed.notify_all()

    async def _wait_for_news(self) -> None:
        """Until somebody is named, or somebody's pause may be over."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(FIRST_PAUSE_S if self._waiting else None):
                await self._arrived.wait()
        except TimeoutError:
            return

    def _next(self, now: float) -> PeerId | None:
        if not self._is_idle():
            return None
        roster = set(self._chain().roster)
        ready = [
            peer
            for peer in self._waiting
            if peer not in self._looking and self._pauses.get(peer, (0.0, 0.0))[0] <= now
        ]
        return min(ready, key=lambda peer: peer not in roster, default=None)

    async def _look(self, peer: PeerId) -> None:
        try:
            chain = await self._chain_sync.fetch_rival(peer)
        except (TransportError, ProtocolViolation) as error:
            log.info("no chain from peer=%s: %s", short(peer), error)
            self._pause(peer)
            return
        if chain is not None and await self._offer(chain):
            self._pauses.pop(peer, None)
        else:
            self._pause(peer)

    def _pause(self, peer: PeerId) -> None:
        _, length_s = self._pauses.pop(peer, (0.0, FIRST_PAUSE_S / 2))
        length_s = min(LONGEST_PAUSE_S, 2 * length_s)
        self._pauses[peer] = (self._now() + length_s, length_s)
        if len(self._pauses) > 4 * MAX_WAITING:
            del self._pauses[next(iter(self._pauses))]

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
