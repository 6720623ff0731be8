"""Data slots that cannot be trained: who said so, and which are skipped for good. Pure.

A member that fails on a slot (its loss is no number, its bytes cannot be read) rolls back, trains
the rest and says so, signed. What a certified round holds of such words is all that counts. The
slot is leased to another peer; once that one has failed on it too it is skipped: neither done nor
paid, and nobody is given it again. One liar skips nothing, and two skip no more than a
hundredth of the job: beyond that a slot is given to whoever has not failed on it, until more than
half of those who are there have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from zoonet.averaging.messages import Failure
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, count, normalise, union

LEAST_CAP: Final = 4  # slots that any job may skip
CAP_SHARE: Final = 0.01  # or this share of its slots


def most_skipped(num_slots: int) -> int:
    """How many slots of a job may be skipped; where more fail, it is not single slots' fault."""
    return max(LEAST_CAP, int(CAP_SHARE * num_slots))


@dataclass(frozen=True, slots=True)
class _Word:
    """What a certified round says that a peer failed on."""

    index: int
    peer: PeerId
    slots: Ranges
    is_alone: bool  # it was the round's only member


@dataclass(slots=True)
class Poison:
    """The failures that a chain's rounds hold, and what follows from them."""

    num_slots: int
    skipped: Ranges = ()
    _words: list[_Word] = field(default_factory=list)
    _failed: dict[int, set[PeerId]] = field(default_factory=dict)  # by slot that is free

    def note(self, index: int, failures: Iterable[Failure], *, num_members: int) -> Ranges:
        """Take note of a certified round's failures. Returns what is skipped from now on."""
        new: Ranges = ()
        for failure in failures:
            word = _Word(index, PeerId(failure.peer), failure.slots, num_members == 1)
            new = union(new, self._take(word))
        return new

    def _take(self, word: _Word) -> Ranges:
        self._words.append(word)
        room = most_skipped(self.num_slots) - count(self.skipped)
        new: list[tuple[int, int]] = []
        for slot in (slot for piece in word.slots for slot in range(*piece)):
            before = self._failed.setdefault(slot, set())
            is_confirmed = bool(before - {word.peer}) or (word.is_alone and word.peer in before)
            before.add(word.peer)
            if is_confirmed and len(new) < room:
                del self._failed[slot]
                new.append((slot, slot + 1))
        self.skipped = union(self.skipped, new)
        return normalise(new)

    def forget(self, done: Ranges) -> None:
        """These slots are trained after all. Takes time in proportion to the fewer of both."""
        if count(done) <= len(self._failed):
            for slot in (slot for piece in done for slot in range(*piece)):
                self._failed.pop(slot, None)
            return
        pieces = normalise(done)
        starts = [start for start, _ in pieces]
        for slot in list(self._failed):
            at = bisect_right(starts, slot) - 1
            if at >= 0 and slot < pieces[at][1]:
                del self._failed[slot]

    def hopeless(self, roster: Collection[PeerId]) -> Ranges:
        """What may not be skipped any more and more than half of these peers have failed on."""
        if not self._is_full:
            return ()
        peers = set(roster)
        return normalise((slot, slot + 1) for slot in self._failed if self._fails(slot, peers))

    def is_hopeless(self, slots: Ranges, roster: Collection[PeerId]) -> bool:
        """Tell whether any of these is such a slot. Takes time in proportion to their number."""
        if not self._is_full:
            return False
        peers = set(roster)
        return any(self._fails(slot, peers) for piece in slots for slot in range(*piece))

    @property
    def _is_full(self) -> bool:
        return count(self.skipped) >= most_skipped(self.num_slots)

    def _fails(self, slot: int, peers: set[PeerId]) -> bool:
        num_failed = len(self._failed.get(slot, set()) & peers)
        return num_failed >= min(2, len(peers)) and 2 * num_failed > len(peers)

    def until(self, length: int, done: Ranges) -> Poison:
        """As it was after so many rounds, in which these slots were done."""
        before = Poison(self.num_slots)
        for word in self._words:
            if word.index < length:
                before._take(word)
        before.forget(done)
        return before

    @property
    def by_peer(self) -> Mapping[PeerId, Ranges]:
        """On what each peer has failed that is to be tried by another one."""
        found: dict[PeerId, list[tuple[int, int]]] = {}
        for slot, peers in self._failed.items():
            for peer in peers:
                found.setdefault(peer, []).append((slot, slot + 1))
        return {peer: normalise(slots) for peer, slots in found.items()}
