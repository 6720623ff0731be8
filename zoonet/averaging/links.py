"""What a peer knows of its links. Pure: observations in, estimates out, no clock inside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from zoonet.crypto import PeerId

NEAR_S: Final = 0.005  # a round trip below this makes a neighbour
FAR_S: Final = 0.010  # above this it is none any more
MAX_LINKS: Final = 1024
MAX_NEAR: Final = 256  # as many as a round can have members
RTT_UP: Final = 0.1  # a longer round trip may be load, and load is no distance
RTT_DOWN: Final = 0.5
RATE: Final = 0.25
TOTAL_UP: Final = 0.5  # a total that was reached can be reached again
TOTAL_DOWN: Final = 0.05
LINE_UP: Final = 0.5
LINE_DOWN: Final = 0.05
BUSY_SHARE: Final = 0.1  # a total below this share of the estimate says that nobody sent
NOMINAL_WAN: Final = 12.5e6  # bytes a second, where no line of anybody is known
NOMINAL_LAN: Final = 1e9
MIN_RATE, MAX_RATE = 1e3, 1e12
MAX_RATIO: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLinks:
    """What a peer says of its links, for planning. Rates are of payload; 0 means unknown.

    `up` and `down` are to and from other sites while the rest of its own site is at work too:
    where several share one line, each one's part of it.
    """

    near: tuple[PeerId, ...] = ()
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    lan_bytes_per_s: float = 0.0  # each way, within its site


class SeenLine(Protocol):
    """What a transport has seen of the line that links to other sites share; 0 for nothing."""

    @property
    def up_bytes_per_s(self) -> float: ...

    @property
    def down_bytes_per_s(self) -> float: ...


class SeenLink(Protocol):
    """What a transport has seen of one link of late; 0 where it has seen nothing."""

    @property
    def rtt_s(self) -> float: ...

    @property
    def up_bytes_per_s(self) -> float: ...

    @property
    def down_bytes_per_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The estimate of one link; 0 where nothing is known."""

    rtt_s: float = 0.0
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0


class LinkBook:
    """Estimates of a peer's links, smoothed over many looks at them.

    A peer becomes near below `NEAR_S` and far above `FAR_S`, so that sites do not flutter. What a
    line carries is told of it as a whole, since links that take turns on it add up to more. A
    local network carries the sum over those links whose rate has changed since the last look: a
    rate that stands still is of another plan's round.
    """

    def __init__(self) -> None:
        self._links: dict[PeerId, Link] = {}
        self._near: set[PeerId] = set()
        self._last: dict[PeerId, tuple[float, float]] = {}  # rates as they were seen last
        self._last_line = (0.0, 0.0)
        self._up = self._down = self._lan_up = self._lan_down = 0.0

    def observe(self, seen: Mapping[PeerId, SeenLink], line: SeenLine) -> None:
        """One look at all links at the same time. What cannot be is taken for "nothing seen"."""
        for peer, look in seen.items():
            self._note(peer, look)
        fresh = [(peer, *self._fresh_rates(peer, look)) for peer, look in seen.items()]
        near = [(up, down) for peer, up, down in fresh if peer in self._near]
        if any(map(self._is_far, self._links)):
            self._note_line(line)
        else:
            self._up = self._down = 0.0
        self._lan_up = _total(self._lan_up, [up for up, _ in near])
        self._lan_down = _total(self._lan_down, [down for _, down in near])

    def _fresh_rates(self, peer: PeerId, look: SeenLink) -> tuple[float, float]:
        """Both rates of a link, 0 where nothing new has been seen of them."""
        old_up, old_down = self._last.get(peer, (0.0, 0.0))
        up, down = look.up_bytes_per_s, look.down_bytes_per_s
        if peer in self._links:
            self._last[peer] = up, down
        return (0.0 if up == old_up else up), (0.0 if down == old_down else down)

    def _note_line(self, line: SeenLine) -> None:
        old_up, old_down = self._last_line
        up, down = self._last_line = line.up_bytes_per_s, line.down_bytes_per_s
        if up != old_up:
            self._up = _smoothed(self._up, _real(up), rising=LINE_UP, falling=LINE_DOWN)
        if down != old_down:
            self._down = _smoothed(self._down, _real(down), rising=LINE_UP, falling=LINE_DOWN)

    def _is_far(self, peer: PeerId) -> bool:
        return peer not in self._near and self.link(peer).rtt_s > 0

    def _note(self, peer: PeerId, look: SeenLink) -> None:
        old = self._links.pop(peer, Link())
        link = Link(
            rtt_s=_smoothed(old.rtt_s, _real(look.rtt_s), rising=RTT_UP, falling=RTT_DOWN),
            up_bytes_per_s=_smoothed(old.up_bytes_per_s, _real(look.up_bytes_per_s)),
            down_bytes_per_s=_smoothed(old.down_bytes_per_s, _real(look.down_bytes_per_s)),
        )
        self._links[peer] = link  # as the newest
        if 0 < link.rtt_s < NEAR_S:
            self._near.add(peer)
        elif link.rtt_s > FAR_S:
            self._near.discard(peer)
        while len(self._links) > MAX_LINKS:
            oldest = next(iter(self._links))
            del self._links[oldest]
            self._last.pop(oldest, None)
            self._near.discard(oldest)

    def link(self, peer: PeerId) -> Link:
        """What is known of the link to a peer."""
        return self._links.get(peer, Link())

    def near(self) -> tuple[PeerId, ...]:
        """Neighbours, in the order of their ids: the nearest, where there are very many."""
        nearest = sorted(self._near, key=lambda peer: (self._links[peer].rtt_s, peer))
        return tuple(sorted(nearest[:MAX_NEAR]))

    def far_rtt_s(self) -> float:
        """The middle of the round trips to peers that are not near; 0 where there are none."""
        far = sorted(link.rtt_s for peer, link in self._links.items() if self._is_far(peer))
        return far[len(far) // 2] if far else 0.0

    def own(self) -> PeerLinks:
        """What this peer says of its links.

        Beside a slower line a local network is never seen at its full rate, so nothing is said
        of it then.
        """
        lan = 0.0 if self._up or self._down else min(self._lan_up, self._lan_down)
        return PeerLinks(
            near=self.near(),
            up_bytes_per_s=self._up,
            down_bytes_per_s=self._down,
            lan_bytes_per_s=lan,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What a plan reckons with for one peer, in payload bytes a second; never zero."""

    up: float
    down: float
    lan: float


def resolve(peers: Sequence[PeerId], links: Mapping[PeerId, PeerLinks]) -> list[Rates]:
    """Rates of the peers, in their order. What is unknown counts as the median of what is known.

    A claim is believed within a factor of `MAX_RATIO` of the median: nobody becomes everybody's
    root for the asking. An unknown local network is taken to be faster than every line.
    """
    said = [links.get(peer, PeerLinks()) for peer in peers]
    ups = _believed([one.up_bytes_per_s for one in said], NOMINAL_WAN)
    downs = _believed([one.down_bytes_per_s for one in said], NOMINAL_WAN)
    fastest = max((*ups, *downs), default=NOMINAL_WAN)
    lans = _believed([one.lan_bytes_per_s for one in said], max(NOMINAL_LAN, 10 * fastest))
    return [Rates(*rates) for rates in zip(ups, downs, lans, strict=True)]


def _believed(claims: Sequence[float], nominal: float) -> list[float]:
    claims = [min(MAX_RATE, max(MIN_RATE, c)) if _real(c) else 0.0 for c in claims]
    known = [claim for claim in claims if claim]
    middle = statistics.median(known) if known else nominal
    return [min(MAX_RATIO * middle, max(middle / MAX_RATIO, c or middle)) for c in claims]


def _real(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0


def _smoothed(old: float, seen: float, *, rising: float = RATE, falling: float = RATE) -> float:
    if not seen or not old:
        return seen or old
    return old + (rising if seen > old else falling) * (seen - old)


def _total(old: float, rates: list[float]) -> float:
    """The estimate of a network's rate, after it has carried these at once.

    It follows a rise soon and a fall slowly: one that carries less may have less to do.
    """
    seen = sum(map(_real, rates))
    if seen < BUSY_SHARE * old:
        return old
    return _smoothed(old, seen, rising=TOTAL_UP, falling=TOTAL_DOWN)
