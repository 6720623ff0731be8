"""What peers' time went into: pure functions of what they wrote down. Instants are monotonic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]  # of one peer, see `Trainee.figures`
Window = tuple[float, float]


def busy_s(began: Iterable[float], step_s: float, window: Window) -> float:
    """How long within the window a device was at steps that began then."""
    start, stop = window
    return sum(max(0.0, min(stop, at + step_s) - max(start, at)) for at in began)


def idle_spans(began: Sequence[float], step_s: float, window: Window) -> Iterator[Window]:
    """Yield when within the window a device had no step; `began` is in order."""
    at, stop = window
    for step in began:
        if step >= stop:
            break
        if step > at:
            yield at, step
        at = max(at, step + step_s)
    if at < stop:
        yield at, stop


def idle_by_phase(
    began: Sequence[float],
    step_s: float,
    phases: Sequence[tuple[float, str]],
    window: Window,
) -> dict[str, float]:
    """Seconds without a step within the window, by what the peer was at."""
    starts = [at for at, _ in phases]
    found: dict[str, float] = {}
    for start, stop in idle_spans(began, step_s, window):
        number = bisect_right(starts, start) - 1
        while start < stop:
            end = min(stop, starts[number + 1]) if number + 1 < len(starts) else stop
            name = phases[number][1] if number >= 0 else "nothing yet"
            found[name] = found.get(name, 0.0) + end - start
            start, number = end, number + 1
    return found


@dataclass(frozen=True, slots=True)
class CertifiedRound:
    """One round of the chain: when the first peer had its certificate, and whose steps it holds."""

    index: int
    at: float
    slots: dict[int, int]

    @property
    def num_slots(self) -> int:
        """Of all peers."""
        return sum(self.slots.values())


def certified_rounds(told: Iterable[Figures]) -> list[CertifiedRound]:
    """The chain's rounds in order, as any peer saw them."""
    found: dict[int, CertifiedRound] = {}
    for figures in told:
        for entry in figures.get("rounds", ()):
            slots = {int(peer): num for peer, num in entry["slots"].items()}
            known = found.get(entry["index"])
            if known is not None:  # rivals' peers know of their own steps only
                slots = known.slots | slots
            at = entry["at"] if known is None else min(entry["at"], known.at)
            found[entry["index"]] = CertifiedRound(entry["index"], at, slots)
    return [found[index] for index in sorted(found)]


def live_s(spans: Iterable[Window], window: Window) -> float:
    """How long within the window a peer was alive."""
    start, stop = window
    return sum(max(0.0, min(stop, end) - max(start, begin)) for begin, end in spans)


def goodput(
    rounds: Sequence[CertifiedRound],
    step_s: Mapping[int, float],
    alive: Mapping[int, Sequence[Window]],
    window: Window,
) -> float:
    """Certified steps' time over live peers' time. `window` begins where nothing is trained yet
    or with a certificate, and ends with one.
    """
    start, stop = window
    useful_s = sum(
        num * step_s[peer]
        for entry in rounds
        if start < entry.at <= stop
        for peer, num in entry.slots.items()
    )
    return useful_s / sum(live_s(spans, window) for spans in alive.values())


def speed_share(
    rounds: Sequence[CertifiedRound], step_s: Mapping[int, float], window: Window
) -> float:
    """Certified steps a second over what all peers together could do. `window` as in `goodput`."""
    start, stop = window
    num_slots = sum(entry.num_slots for entry in rounds if start < entry.at <= stop)
    return num_slots / ((stop - start) * sum(1 / seconds for seconds in step_s.values()))
