"""Data slots that cannot be trained: who said so, and which are skipped for good. Pure.

A member that fails on a slot (its loss is no number, its bytes cannot be read) rolls back, trains
the rest and says so, signed. What a certified round holds of such words is all that counts. The
slot is leased to another peer; once that one has failed on it too it is skipped: neither done nor
paid, and nobody is given it again. One liar skips nothing, and two skip no more than a
hundredth of the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from zoonet.averaging.messages import Failure
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, count, normalise, overlaps, union

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
    condemned: Ranges = ()  # those that would be skipped, were there not too many already
    _words: list[_Word] = field(default_factory=list)
    _failed: dict[int, set[PeerId]] = field(default_factory=dict)  # by slot, neither done nor so

    def note(self, index: int, failures: Iterable[Failure], *, num_members: int) -> Ranges:
        """Take note of a certified round's failures. Returns what is skipped from now on."""
        new: Ranges = ()
        for failure in failures:
            word = _Word(index, PeerId(failure.peer), failure.slots, num_members == 1)
            new = union(new, self._take(word))
        return new

    def _take(self, word: _Word) -> Ranges:
        self._words.append(word)
        new = []
        for slot in (slot for piece in word.slots for slot in range(*piece)):
            before = self._failed.setdefault(slot, set())
            is_confirmed = bool(before - {word.peer}) or (word.is_alone and word.peer in before)
            before.add(word.peer)
            if is_confirmed:
                del self._failed[slot]
                new.append((slot, slot + 1))
        room = max(0, most_skipped(self.num_slots) - count(self.skipped))
        self.skipped = union(self.skipped, new[:room])
        self.condemned = union(self.condemned, new[room:])
        return normalise(new[:room])

    def forget(self, done: Ranges) -> None:
        """These slots are trained after all."""
        if self._failed:
            here = [slot for slot in self._failed if overlaps(((slot, slot + 1),), done)]
            for slot in here:
                del self._failed[slot]

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
