"""Which chunk of a state to ask of which donor next. Pure: no clock, no socket.

Every donor is asked for several chunks ahead, so that its way up is never idle: as many as it
sends in AHEAD_S, by what it has shown. Once all chunks have been asked for, whoever has room is
asked for those that would otherwise come last, if it is likely to be sooner.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from zoonet.crypto import PeerId

AHEAD_S: Final = 0.25  # more than most round trips
LEAST_AHEAD: Final = 2  # chunks: one on its way, one asked for
MOST_AHEAD: Final = 32
FIRST_PACE_S: Final = 1.0  # of a chunk, while nobody has sent any
_LEAST_PACE_S: Final = 1e-6
_SHARE_OF_NEWEST: Final = 0.3  # in a donor's mean pace


class StatePlan:
    """The state of one fetch. Times are seconds of any one clock."""

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks
        self._here: set[int] = set()
        self._num_begun = 0  # chunks that have been asked for, from the first on
        self._given_back: deque[int] = deque()  # of those: nobody is asked for them any more
        self._asked: dict[PeerId, deque[int]] = {}  # in the order in which they will come
        self._since: dict[PeerId, float] = {}  # when the first of these could begin to come
        self._pace_s: dict[PeerId, float] = {}  # of a donor that has sent any: one chunk's time

    @property
    def num_here(self) -> int:
        """Chunks that have come."""
        return len(self._here)

    @property
    def is_complete(self) -> bool:
        """Whether all have."""
        return len(self._here) == self.num_chunks

    def first_asked(self, donor: PeerId) -> int | None:
        """The chunk that this donor has to send next, None where it was asked for none."""
        asked = self._asked.get(donor)
        return asked[0] if asked else None

    def take(self, donor: PeerId, now: float) -> int | None:
        """Return a chunk to ask of this donor now, None where it is to wait."""
        asked = self._asked.setdefault(donor, deque())
        if len(asked) >= self._ahead(donor):
            return None
        index = self._unasked()
        if index is None:
            index = self._late(donor, now)
        if index is not None:
            if not asked:
                self._since[donor] = now
            asked.append(index)
        return index

    def arrived(self, donor: PeerId, now: float) -> bool:
        """The donor sent what it had to send next; tell whether that had not come before."""
        index = self._asked[donor].popleft()
        took_s = max(now - self._since[donor], _LEAST_PACE_S)
        share = _SHARE_OF_NEWEST if donor in self._pace_s else 1.0
        known_s = self._pace_s.get(donor, 0.0)
        self._pace_s[donor] = (1 - share) * known_s + share * took_s
        self._since[donor] = now
        is_new = index not in self._here
        self._here.add(index)
        return is_new

    def lose(self, donor: PeerId) -> None:
        """The donor sends nothing more."""
        asked = self._asked.pop(donor, ())
        self._pace_s.pop(donor, None)
        others = {index for queue in self._asked.values() for index in queue}
        self._given_back.extend(index for index in asked if index not in others | self._here)

    def _ahead(self, donor: PeerId) -> int:
        if donor not in self._pace_s:
            return LEAST_AHEAD
        wanted = math.ceil(AHEAD_S / self._pace_s[donor]) + 1
        return min(max(wanted, LEAST_AHEAD), MOST_AHEAD)

    def _unasked(self) -> int | None:
        while self._given_back:
            index = self._given_back.popleft()
            if index not in self._here:
                return index
        if self._num_begun == self.num_chunks:
            return None
        self._num_begun += 1
        return self._num_begun - 1

    def _late(self, donor: PeerId, now: float) -> int | None:
        """The chunk that will come last, if this donor is likely to send it sooner."""
        due: dict[int, float] = {}
        for other, asked in self._asked.items():
            for place, index in enumerate(asked):
                if index not in self._here:
                    left_s = 0.0 if other == donor else self._left_s(other, place, now)
                    due[index] = min(left_s, due.get(index, math.inf))
        if not due:
            return None
        latest = max(due, key=due.__getitem__)
        own_s = (len(self._asked[donor]) + 1) * self._pace_of(donor)
        return latest if due[latest] > own_s else None

    def _left_s(self, donor: PeerId, place: int, now: float) -> float:
        """Until a chunk comes. Who is late is likely to be as late again."""
        pace_s = self._pace_of(donor)
        return abs(now - self._since[donor] - pace_s) + place * pace_s

    def _pace_of(self, donor: PeerId) -> float:
        """The donor's own, or else the mean of all others'."""
        known = self._pace_s.values()
        usual_s = sum(known) / len(known) if known else FIRST_PACE_S
        return self._pace_s.get(donor, usual_s)
