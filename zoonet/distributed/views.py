"""Agreeing on who is left: everybody says whom it has lost until all who are left say the same.

What one has lost the others give up, too, so that the sets only grow and soon are equal. A peer may
agree, lose another one and begin anew while a slower one is still at it; so views are numbered, and
each counts once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Final

from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation

MAX_VIEWS: Final = 64  # of one peer that were not agreed with

Lost = frozenset[int]  # ranks


class Views:
    """What the others have said so far."""

    def __init__(self) -> None:
        self._said: defaultdict[PeerId, dict[int, Lost]] = defaultdict(dict)
        self._num_agreed: Counter[PeerId] = Counter()  # the last number that counted

    def hear(self, peer_id: PeerId, number: int, lost: Lost) -> None:
        """A peer says whom it has lost. Raises ProtocolViolation where it says too much."""
        said = self._said[peer_id]
        if number > self._num_agreed[peer_id]:
            said[number] = said.get(number, frozenset()) | lost
        if len(said) > MAX_VIEWS:
            raise ProtocolViolation(peer_id, "forms more groups than it takes part in")

    def all_lost(self, living: Collection[PeerId]) -> Lost:
        """Whom any of these has lost, in views that have not counted yet."""
        sets = [lost for peer_id in living for lost in self._said[peer_id].values()]
        return frozenset().union(*sets)

    def differing(self, living: Collection[PeerId], lost: Lost) -> list[PeerId]:
        """Who has not said yet that it has lost just these."""
        return [peer_id for peer_id in living if lost not in self._said[peer_id].values()]

    def agree(self, living: Collection[PeerId], lost: Lost) -> None:
        """All of these have said so: their views have counted."""
        for peer_id in living:
            said = self._said[peer_id]
            number = min(number for number, theirs in said.items() if theirs == lost)
            self._num_agreed[peer_id] = number
            self._said[peer_id] = {n: theirs for n, theirs in said.items() if n > number}
