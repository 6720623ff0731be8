"""What a person sees of a job over time, as a pure fold of its successive views.

A `JobView` says where the job stands; here is added what only time shows: who came late, who fell
silent, and when. No clock and no network: the caller says when it looked (`now_s`, seconds on any
steadily rising clock).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from zoonet.crypto import PeerId
from zoonet.jobs import JobView, PeerView

SILENT_S: Final = 20.0  # without a new word from a peer before it counts as gone
MAX_EVENTS: Final = 200
ENDED: Final = frozenset({"finished", "failed"})

EventKind = Literal["came", "came late", "left", "returned", "finished", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLine:
    """One participant: its last word, and when it was first and last heard."""

    said: PeerView
    first_heard_s: float
    last_heard_s: float
    is_late: bool  # the job had certified rounds when this peer was still joining
    has_left: bool = False

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""
        return self.said.peer_id

    @property
    def name(self) -> str:
        """What the owner called it, or the end of its id."""
        return printable(self.said.name) or self.peer_id[-8:]

    @property
    def is_working(self) -> bool:
        """Tell whether it is here and not done."""
        return not self.has_left and self.said.phase not in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a reader of the loss curve should know of."""

    at_s: float  # since the watching began
    num_rounds: int  # certified when it happened
    kind: EventKind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmView:
    """A job and everyone who was ever seen in it."""

    started_s: float
    seen_s: float = 0.0  # of the last look, since the watching began
    job: JobView | None = None  # as last seen
    peers: Mapping[PeerId, PeerLine] = field(default_factory=dict)
    events: tuple[Event, ...] = ()  # the newest MAX_EVENTS, oldest first
    num_events: int = 0  # all that ever happened

    @property
    def num_rounds(self) -> int:
        """Certified rounds."""
        return self.job.num_rounds if self.job else 0

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """Held-out loss (nats a token) of the outer parameters, by certified round."""
        return self.job.eval_losses if self.job else ()

    @property
    def num_working(self) -> int:
        """Participants that are here and not done."""
        return sum(line.is_working for line in self.peers.values())

    @property
    def tokens_per_s(self) -> float:
        """Summed speed of those who are at work."""
        return sum(line.said.tokens_per_s for line in self.peers.values() if line.is_working)


def printable(text: str, *, max_chars: int = 60) -> str:
    """Text from a stranger without what a terminal would obey: control characters, escapes."""
    return "".join(char for char in text[: max_chars * 2] if char.isprintable())[:max_chars]


def fold(view: SwarmView, job: JobView, now_s: float, *, silent_s: float = SILENT_S) -> SwarmView:
    """Return the view after a look at the job, which may say the same as before."""
    peers, events = dict(view.peers), []
    seen = replace(view, job=job, seen_s=now_s - view.started_s)
    for said in job.peers:
        known = peers.get(said.peer_id)
        line = _line_of(view, known, said, now_s)
        peers[said.peer_id] = line
        events += [_event(seen, now_s, kind, line.name) for kind in _kinds(known, line)]
    seen = _with_events(replace(seen, peers=peers), events)
    silent = [
        line.peer_id
        for line in peers.values()
        if line.is_working and now_s - line.last_heard_s > silent_s
    ]
    return leave(seen, silent, now_s)


def leave(view: SwarmView, peer_ids: Iterable[PeerId], now_s: float) -> SwarmView:
    """Return the view without these peers: they stay listed, as gone."""
    peers, events = dict(view.peers), []
    for peer_id in peer_ids:
        line = peers.get(peer_id)
        if line is None or line.has_left:
            continue
        peers[peer_id] = replace(line, has_left=True)
        events.append(_event(view, now_s, "left", line.name))
    return _with_events(replace(view, peers=peers), events)


def _line_of(view: SwarmView, known: PeerLine | None, said: PeerView, now_s: float) -> PeerLine:
    if known is None:
        is_late = said.phase == "joining" and view.num_rounds > 0
        return PeerLine(said=said, first_heard_s=now_s, last_heard_s=now_s, is_late=is_late)
    if said == known.said:
        return known
    return replace(known, said=said, last_heard_s=now_s, has_left=False)


def _kinds(known: PeerLine | None, line: PeerLine) -> list[EventKind]:
    kinds: list[EventKind] = []
    if known is None:
        kinds.append("came late" if line.is_late else "came")
    elif known.has_left and not line.has_left:
        kinds.append("returned")
    before = known.said.phase if known else ""
    if line.said.phase != before and line.said.phase == "finished":
        kinds.append("finished")
    if line.said.phase != before and line.said.phase == "failed":
        kinds.append("failed")
    return kinds


def _event(view: SwarmView, now_s: float, kind: EventKind, name: str) -> Event:
    return Event(at_s=now_s - view.started_s, num_rounds=view.num_rounds, kind=kind, name=name)


def _with_events(view: SwarmView, events: list[Event]) -> SwarmView:
    return replace(
        view,
        events=(*view.events, *events)[-MAX_EVENTS:],
        num_events=view.num_events + len(events),
    )
