"""Runs by turns, thrown away where the machine or the link was not what it should be."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console

from experiments.testbed import probes
from experiments.testbed.bed import Bed, Loopback
from experiments.testbed.machine_load import MAX_OTHERS_CORES, Moment
from experiments.testbed.troupe import ActorFailed, Performance

MAX_LATE_SHARE: Final = 0.01  # of a run's packets, delivered by the delay line after their time
LISTEN_S: Final = 0.1
SILENT_WITHIN_S: Final = 30.0
MAX_IDLE_BYTES_PER_S: Final = 200_000  # beats and gossip, and nothing that is averaged
SPARE_LAPS: Final = 2  # a benchmark tries 2 x repeats + so many laps before it gives up

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One round of one contender, and whether it counts."""

    case: str  # what was measured besides the contender: the number of peers, the layout
    contender: str
    lap: int
    seconds: float
    match_s: float = 0.0  # before the round, to find each other
    crossing_bytes: int = 0  # at the interfaces, headers included
    crossing_packets: int = 0
    cpu_s: float = 0.0
    num_digests: int = 1
    num_wrong: int = 0  # peers whose mean is not that of whom they say
    load_1_min: float = 0.0
    others_cores: float = 0.0
    why_not: str = ""  # a run that does not count says why
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether it is used."""
        return not self.why_not


@dataclass(frozen=True, slots=True)
class Rules:
    """When a run is thrown away. A smoke run proves the machinery, not figures: it keeps all."""

    is_smoke: bool = False
    max_others_cores: float = MAX_OTHERS_CORES
    is_timed: bool = True  # else neither a busy machine nor a late link matters: bytes are bytes

    @property
    def _is_strict(self) -> bool:
        return self.is_timed and not self.is_smoke

    def complaint(self, performance: Performance, others_cores: float) -> str:
        """Why a round does not count; empty where it does."""
        if performance.failures:
            peer, why = next(iter(performance.failures.items()))
            return f"failed: peer {peer}: {why}"
        if performance.num_wrong:
            return f"wrong mean at {performance.num_wrong} peers"
        if others_cores > self.max_others_cores and self._is_strict:
            return f"busy machine: others used {others_cores:.2f} cores"
        return ""

    def line_complaint(self, figures: dict[str, Any]) -> str:
        """Why a delay line's work does not count."""
        late = figures.get("num_late", 0)
        if late > MAX_LATE_SHARE * figures.get("num_packets", 0) and self._is_strict:
            return f"link: {late} packets were late, by up to {figures['largest_lateness_s']:.3f} s"
        return ""

    async def link_complaint(self, bed: Bed | Loopback) -> str:
        """Why a run need not even begin: the link is not what it should be."""
        if not isinstance(bed, Bed) or len(bed.layout.sites) < 2 or not bed.link.rate_bits_per_s:
            return ""
        looked = await probes.look(bed)
        complaint = looked.complaint(bed)
        return f"link: {complaint}" if complaint and self._is_strict else ""


async def silence(bed: Bed | Loopback) -> str:
    """Wait until nothing of an earlier round crosses any more. Returns a complaint if it does."""
    for _ in range(int(SILENT_WITHIN_S / LISTEN_S)):
        before = bed.crossing().sent_bytes
        await asyncio.sleep(LISTEN_S)
        if bed.crossing().sent_bytes - before < LISTEN_S * MAX_IDLE_BYTES_PER_S:
            return ""
    return "link: it is never idle"


async def measure(
    bed: Bed | Loopback,
    perform: Callable[[], Awaitable[Performance]],
    rules: Rules,
    *,
    case: str,
    contender: str,
    lap: int,
) -> Run:
    """Look at the link, run a round, count its bytes, and say whether it counts."""
    why_not = await silence(bed) or await rules.link_complaint(bed)
    num_dropped = bed.num_dropped()
    await bed.line_figures()  # from here on
    before, bytes_before, load = Moment.now(), bed.crossing(), os.getloadavg()[0]
    try:
        performance = await perform()
    except ActorFailed as error:
        failed = Run(
            case=case, contender=contender, lap=lap, seconds=0.0, why_not=f"failed: {error}"
        )
        tell(failed)
        return failed
    crossed = bed.crossing() - bytes_before
    others_cores = Moment.now().others_cores_since(before)
    figures = await bed.line_figures()
    why_not = (
        why_not
        or rules.complaint(performance, others_cores)
        or rules.line_complaint(figures)
        or ("warm-up" if lap < 0 else "")
    )
    run = Run(
        case=case,
        contender=contender,
        lap=lap,
        seconds=performance.seconds,
        match_s=performance.match_s,
        crossing_bytes=crossed.sent_bytes,
        crossing_packets=crossed.sent_packets,
        cpu_s=performance.cpu_s,
        num_digests=performance.num_digests,
        num_wrong=performance.num_wrong,
        load_1_min=round(load, 2),
        others_cores=round(others_cores, 3),
        why_not=why_not,
        more={"delay_line": figures, "num_dropped": bed.num_dropped() - num_dropped}
        if figures
        else {},
    )
    tell(run)
    return run


def tell(run: Run) -> None:
    """Show a run as it ends."""
    note = f"[yellow]not counted: {run.why_not}" if run.why_not else ""
    console.print(
        f"{run.case:>10} {run.contender:<20} {run.seconds:7.3f} s "
        f"{run.crossing_bytes / 1e6:9.1f} MB  {note}",
        highlight=False,
        soft_wrap=True,
    )


async def by_turns(
    contenders: Sequence[str],
    repeats: int,
    measure_one: Callable[[str, int], Awaitable[Run]],
    *,
    is_cold: bool = False,
) -> list[Run]:
    """A B C C B A ... until each has `repeats` runs that count, or too many laps have passed.

    Before that comes one lap (-1) to warm up, which never counts, unless `is_cold`.
    """
    runs = [] if is_cold else [await measure_one(contender, -1) for contender in contenders]
    num_done = dict.fromkeys(contenders, 0)
    for lap in range(2 * repeats + SPARE_LAPS):
        order = contenders if lap % 2 == 0 else tuple(reversed(contenders))
        for contender in order:
            if num_done[contender] < repeats:
                runs.append(await measure_one(contender, lap))
                num_done[contender] += runs[-1].counts
    return runs


# --- what comes of it ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the least and the largest of what it is the median of."""

    median: float
    least: float
    largest: float
    num: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} - {self.largest:.3g})"


def spread(values: Iterable[float]) -> Spread | None:
    """Summarise values; None where there are none."""
    found = sorted(values)
    if not found:
        return None
    return Spread(statistics.median(found), found[0], found[-1], len(found))


def middle(found: Spread | None) -> float | None:
    """The median; None where nothing counted."""
    return None if found is None else found.median


def of(runs: Iterable[Run], case: str, contender: str) -> list[Run]:
    """The runs that count, of one contender in one case."""
    return [run for run in runs if (run.case, run.contender) == (case, contender) and run.counts]


def ratio(runs: Sequence[Run], case: str, ours: str, theirs: str) -> Spread | None:
    """Seconds of one contender over another's, lap by lap where both counted in a lap.

    Where no lap has both, the ratio of the medians.
    """
    mine = {run.lap: run.seconds for run in of(runs, case, ours)}
    other = {run.lap: run.seconds for run in of(runs, case, theirs)}
    paired = spread(mine[lap] / other[lap] for lap in mine.keys() & other.keys())
    if paired is not None or not mine or not other:
        return paired
    return spread([statistics.median(mine.values()) / statistics.median(other.values())])


def discarded(runs: Iterable[Run]) -> dict[str, int]:
    """How many runs do not count, by the first words of why."""
    counts: dict[str, int] = {}
    for run in runs:
        if run.why_not:
            kind = run.why_not.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def as_json(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Every run, also those that do not count."""
    return [asdict(run) for run in runs]
