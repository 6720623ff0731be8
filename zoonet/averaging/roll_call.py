"""Who of those that want a job is there at all: asked at once, beside everything else.

Anybody may say that it wants a job, and under as many names as it likes. So before the first round
nobody is waited for, or gathered at, who has never answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from zoonet.averaging.chain import Chain
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, TransportError

NUM_AT_ONCE: Final = 16
LOOK_S: Final = 0.5  # between two looks at who wants the job
FRESH_S: Final = 20.0  # an answer counts this long, then the peer is asked again
FIRST_PAUSE_S: Final = 2.0  # before who did not answer is asked again
LONGEST_PAUSE_S: Final = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Word:
    """What became of asking a peer."""

    answered: bool
    ask_again_at: float
    pause_s: float = FIRST_PAUSE_S


class RollCall:
    """Asks everybody in `wanted()` whether it is there, until the job is founded.

    `ask` raises TransportError or ProtocolViolation where a peer does not answer as it should;
    it has `answer_s`.
    """

    def __init__(
        self,
        chain: Callable[[], Chain],
        wanted: Callable[[], set[PeerId]],
        ask: Callable[[PeerId], Awaitable[None]],
        *,
        answer_s: float,
    ) -> None:
        self._chain = chain
        self._wanted = wanted
        self._ask = ask
        self._answer_s = answer_s
        self._words: dict[PeerId, _Word] = {}
        self._asking: set[PeerId] = set()
        self._changed = asyncio.Condition()

    def present(self) -> set[PeerId]:
        """Those who want the job, and answered when they were last asked."""
        return {
            peer for peer in self._wanted() if peer in self._words and self._words[peer].answered
        }

    def knocked(self, peer: PeerId) -> None:
        """The peer has come here by itself: where it did not answer it is asked again now."""
        word = self._words.get(peer)
        if word is not None and not word.answered:
            word.ask_again_at, word.pause_s = 0.0, FIRST_PAUSE_S

    async def run(self) -> None:
        """Ask some at a time, those first who were never asked; end with the first round."""
        async with asyncio.TaskGroup() as tasks:
            while not self._chain().roster:
                wanted = self._wanted()
                for peer in set(self._words) - wanted:
                    del self._words[peer]
                for peer in self._due(wanted)[: NUM_AT_ONCE - len(self._asking)]:
                    self._asking.add(peer)
                    tasks.create_task(self._call(peer))
                await self._wait_for_answer(LOOK_S)

    async def settled(self, timeout_s: float) -> None:
        """Return when everybody has been asked once, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._wanted() <= set(self._words))
        except TimeoutError:
            return

    def _due(self, wanted: set[PeerId]) -> list[PeerId]:
        now = asyncio.get_running_loop().time()
        at = {peer: self._words[peer].ask_again_at for peer in wanted if peer in self._words}
        ready = [peer for peer in wanted if peer not in self._asking and at.get(peer, 0.0) <= now]
        return sorted(ready, key=lambda peer: (at.get(peer, -1.0), peer))

    async def _call(self, peer: PeerId) -> None:
        is_there = True
        try:
            async with asyncio.timeout(self._answer_s):
                await self._ask(peer)
        except (TransportError, ProtocolViolation, TimeoutError) as error:
            log.debug("peer=%s wants the job and does not answer: %s", short(peer), error)
            is_there = False
        finally:
            self._asking.discard(peer)
        self._words[peer] = self._after(self._words.get(peer), is_there)
        async with self._changed:
            self._changed.notify_all()

    def _after(self, before: _Word | None, is_there: bool) -> _Word:
        now = asyncio.get_running_loop().time()
        if is_there:
            return _Word(True, now + FRESH_S)
        pause_s = FIRST_PAUSE_S
        if before is not None and not before.answered:
            pause_s = min(LONGEST_PAUSE_S, 2 * before.pause_s)
        return _Word(False, now + pause_s, pause_s)

    async def _wait_for_answer(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()
        except TimeoutError:
            return
