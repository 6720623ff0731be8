"""What a person sees of a job, as a pure fold of its participants' `Progress` records.

No clock and no network: the caller says when a record arrived (`now_s`, seconds on any steadily
rising clock) and calls `tick` to notice who has fallen silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from zoonet.crypto import PeerId
from zoonet.records import Progress

SILENT_S: Final = 20.0  # without a word from a peer before it counts as gone
MAX_EVENTS: Final = 200
MAX_CURVE_POINTS: Final = 2000
ENDED: Final = frozenset({"finished", "failed"})

EventKind = Literal["came", "came late", "left", "returned", "finished", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLine:
    """One participant: its last word, and when it was first and last heard."""

    peer_id: PeerId
    progress: Progress
    first_heard_s: float
    last_heard_s: float
    is_late: bool  # the job had certified rounds when this peer was still joining
    has_left: bool = False

    @property
    def name(self) -> str:
        """What the owner called it, or the end of its id."""
        return printable(self.progress.name) or self.peer_id[-8:]

    @property
    def is_working(self) -> bool:
        """Tell whether it is here and not done."""
        return not self.has_left and self.progress.phase not in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a reader of the loss curve should know of."""

    at_s: float
    num_rounds: int  # certified when it happened
    kind: EventKind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """Held-out loss (nats a token) of the outer parameters after a certified round."""

    num_rounds: int
    loss: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmView:
    """A job and everyone in it."""

    job_id: str
    started_s: float
    peers: Mapping[PeerId, PeerLine] = field(default_factory=dict)
    curve: tuple[LossPoint, ...] = ()  # by num_rounds
    events: tuple[Event, ...] = ()  # the newest MAX_EVENTS, oldest first
    num_events: int = 0  # all that ever happened

    @property
    def num_rounds(self) -> int:
        """Certified rounds of the longest chain that any participant reports."""
        return max((line.progress.num_rounds for line in self.peers.values()), default=0)

    @property
    def num_tokens(self) -> int:
        """Certified tokens of that chain."""
        return max((line.progress.num_tokens for line in self.peers.values()), default=0)

    @property
    def tokens_per_s(self) -> float:
        """Summed speed of those who are at work."""
        return sum(line.progress.tokens_per_s for line in self.peers.values() if line.is_working)

    @property
    def last_round(self) -> Progress | None:
        """The report of whoever has the longest chain: its members and contributors."""
        reports = [line.progress for line in self.peers.values()]
        return max(reports, key=lambda report: report.num_rounds, default=None)

    @property
    def best_loss(self) -> float:
        """Lowest held-out loss so far; 0 where none was measured yet."""
        return min((point.loss for point in self.curve), default=0.0)

    @property
    def is_finished(self) -> bool:
        """Tell whether any participant holds the finished model."""
        return any(line.progress.phase == "finished" for line in self.peers.values())


def printable(text: str, *, max_chars: int = 60) -> str:
    """Text from a stranger without what a terminal would obey: control characters, escapes."""
    return "".join(char for char in text[: max_chars * 2] if char.isprintable())[:max_chars]


def fold(view: SwarmView, author: PeerId, progress: Progress, now_s: float) -> SwarmView:
    """Return the view after a participant's report. Reports about other jobs change nothing."""
    if progress.job_id != view.job_id:
        return view
    known = view.peers.get(author)
    is_joining_late = progress.phase == "joining" and view.num_rounds > 0
    line = PeerLine(
        peer_id=author,
        progress=progress,
        first_heard_s=known.first_heard_s if known else now_s,
        last_heard_s=now_s,
        is_late=known.is_late if known else is_joining_late,
    )
    events = _events_of(view, known, line, now_s)
    view = replace(
        view,
        peers={**view.peers, author: line},
        curve=_with_point(view.curve, progress, now_s),
    )
    return _with_events(view, events)


def tick(view: SwarmView, now_s: float, *, silent_s: float = SILENT_S) -> SwarmView:
    """Return the view with those marked as gone who were silent for longer than `silent_s`."""
    silent = [
        line
        for line in view.peers.values()
        if line.is_working and now_s - line.last_heard_s > silent_s
    ]
    return leave(view, (line.peer_id for line in silent), now_s) if silent else view


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


def _with_events(view: SwarmView, events: list[Event]) -> SwarmView:
    return replace(
        view,
        events=(*view.events, *events)[-MAX_EVENTS:],
        num_events=view.num_events + len(events),
    )


def _events_of(
    view: SwarmView, known: PeerLine | None, line: PeerLine, now_s: float
) -> list[Event]:
    kinds: list[EventKind] = []
    if known is None:
        kinds.append("came late" if line.is_late else "came")
    elif known.has_left:
        kinds.append("returned")
    phase = line.progress.phase
    if phase == "finished" and (known is None or known.progress.phase != "finished"):
        kinds.append("finished")
    if phase == "failed" and (known is None or known.progress.phase != "failed"):
        kinds.append("failed")
    return [_event(view, now_s, kind, line.name) for kind in kinds]


def _event(view: SwarmView, now_s: float, kind: EventKind, name: str) -> Event:
    return Event(at_s=now_s - view.started_s, num_rounds=view.num_rounds, kind=kind, name=name)


def _with_point(
    curve: tuple[LossPoint, ...], progress: Progress, now_s: float
) -> tuple[LossPoint, ...]:
    """Replicas are bit-identical, so the first to report a round's loss speaks for all."""
    if progress.eval_loss <= 0 or any(p.num_rounds == progress.eval_round for p in curve):
        return curve
    point = LossPoint(num_rounds=progress.eval_round, loss=progress.eval_loss, at_s=now_s)
    return tuple(sorted((*curve, point), key=lambda p: p.num_rounds))[-MAX_CURVE_POINTS:]
