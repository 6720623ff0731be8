"""Peers who wasted a round, as this peer has seen it with its own eyes. Pure; times are given."""

from __future__ import annotations

import logging
from typing import Final

from zoonet.crypto import PeerId, short

FIRST_S: Final = 20.0
LONGEST_S: Final = 3600.0
MAX_SUSPECTS: Final = 1024

log = logging.getLogger(__name__)


class Suspects:
    """Remembers whom to do without for a while: longer each time, bounded, never told to others.

    A coordinator leaves suspects out of its plans, and nobody waits for a suspect to coordinate.
    """

    def __init__(self) -> None:
        self._until: dict[PeerId, tuple[float, float]] = {}  # end and length, in seconds

    def note(self, peer: PeerId, reason: str, now: float) -> None:
        """The peer wasted a round."""
        end, length_s = self._until.pop(peer, (0.0, FIRST_S / 2))
        if end <= now:  # what several streams tell of one deed counts once
            length_s = min(LONGEST_S, 2 * length_s)
        self._until[peer] = (now + length_s, length_s)
        if len(self._until) > MAX_SUSPECTS:
            del self._until[next(iter(self._until))]
        log.warning("doing without peer=%s for %.0f s: %s", short(peer), length_s, reason)

    def at(self, now: float) -> frozenset[PeerId]:
        """Who is suspected at that time."""
        return frozenset(peer for peer, (end, _) in self._until.items() if end > now)
