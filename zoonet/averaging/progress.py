"""How those whom a peer waits for have come along lately. Pure, no clock inside."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId

MAX_LOOKS: Final = 64  # that are kept of the longest window, about


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one awaited peer stands at one moment: chunks of all kinds together."""

    num_come: float  # with the shares of those under way, where these are told
    num_left: int
    num_waits: int  # how often it has said that it waits for others; 0 where that excuses nothing
    num_served: int  # how often this peer has looked and had nothing on its way to it
    num_unheard: int  # how often it has looked and had not heard a byte of it for a while


@dataclass(frozen=True, slots=True)
class Pace:
    """What an awaited peer has brought in a window of time."""

    num_new: float
    num_left: int
    span_s: float
    is_held_up: bool  # by others: it waits, and not only for what is on its way from here
    was_away: bool  # not a byte came of it for a while: perhaps its machine did something else

    @property
    def at_least_s(self) -> float:
        """How long it needs for the rest. Whole chunks are counted: one more may be nearly here."""
        return self.num_left * self.span_s / (self.num_new + 1)

    @property
    def at_most_s(self) -> float:
        """The same where no other one is; infinite where none has come."""
        if not self.num_left:
            return 0.0
        return self.num_left * self.span_s / self.num_new if self.num_new else math.inf


class Progress:
    """The standings of one attempt's peers, some dozens of looks at them, however long it takes."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[PeerId, Standing]]] = deque()
        self._num_served: Counter[PeerId] = Counter()
        self._num_unheard: Counter[PeerId] = Counter()

    def note(
        self,
        awaited: Iterable[Awaited],
        elapsed_s: float,
        unserved: Container[PeerId],
        longest_s: float,
        unheard: Container[PeerId] = (),
        partly: Mapping[PeerId, float] | None = None,
    ) -> None:
        """Take a look, `elapsed_s` after the attempt began. Windows are at most `longest_s` long.

        The `unserved` are those to whom something is on its way from here, the `unheard` those of
        whom not a byte has come for a while. `partly` says how many chunks are under way, by their
        shares that have come.
        """
        by_peer: dict[PeerId, list[Awaited]] = {}
        for one in awaited:
            by_peer.setdefault(one.peer, []).append(one)
        self._num_served.update(peer for peer in by_peer if peer not in unserved)
        self._num_unheard.update(peer for peer in by_peer if peer in unheard)
        looks, shares = self._looks, partly or {}
        if len(looks) > 1 and looks[-1][0] - looks[-2][0] < longest_s / MAX_LOOKS:
            looks.pop()
        looks.append(
            (
                elapsed_s,
                {
                    peer: _standing(
                        kinds,
                        shares.get(peer, 0.0),
                        self._num_served[peer],
                        self._num_unheard[peer],
                    )
                    for peer, kinds in by_peer.items()
                },
            )
        )
        while len(looks) > 1 and looks[1][0] <= elapsed_s - longest_s:
            looks.popleft()

    def paces(self, window_s: float) -> dict[PeerId, Pace]:
        """Of everyone who was awaited, over the last `window_s`; of nobody before that."""
        if not self._looks:
            return {}
        now_s, now = self._looks[-1]
        before = [look for look in self._looks if look[0] <= now_s - window_s]
        if not before:
            return {}
        then_s, then = before[-1]
        return {
            peer: _pace(then[peer], standing, now_s - then_s)
            for peer, standing in now.items()
            if peer in then
        }


def _standing(
    kinds: Sequence[Awaited], share: float, num_served: int, num_unheard: int
) -> Standing:
    lacking = [one for one in kinds if one.num_come < one.num_all]
    return Standing(
        num_come=share + sum(one.num_come for one in kinds),
        num_left=sum(one.num_all - one.num_come for one in lacking),
        num_waits=min((one.num_waits for one in lacking), default=0),
        num_served=num_served,
        num_unheard=num_unheard,
    )


def _pace(then: Standing, now: Standing, span_s: float) -> Pace:
    return Pace(
        num_new=max(0.0, now.num_come - then.num_come),
        num_left=now.num_left,
        span_s=span_s,
        is_held_up=now.num_waits > then.num_waits and now.num_served > then.num_served,
        was_away=now.num_unheard > then.num_unheard,
    )
