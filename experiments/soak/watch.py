"""What the kernel says of a running process: memory, threads, open descriptors, processor time."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

MEASURES: Final = (
    "rss_bytes",
    "peak_rss_bytes",
    "pss_bytes",
    "own_bytes",
    "daemon_rss_bytes",
    "num_threads",
    "num_descriptors",
    "num_tasks",
)
_KIB: Final = 1024
_RESET_PEAK: Final = "5"  # to clear_refs: see proc(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at one peer. Bytes of its own process, unless it says daemon."""

    at_s: float  # since the soak began
    rss_bytes: int
    peak_rss_bytes: int  # since the look before
    pss_bytes: int  # shared pages count by their share
    own_bytes: int  # pages that are nobody else's (USS)
    daemon_rss_bytes: int
    num_threads: int
    num_descriptors: int
    num_tasks: int  # of its event loop, as it said last
    cpu_s: float  # of both processes, since they began


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One measure of one peer in one minute."""

    minute: int
    median: float
    least: float
    largest: float


def look(pid: int, *, at_s: float, num_tasks: int) -> Sample | None:
    """Look at a peer's process and its daemon; None where it has gone or is about to."""
    try:
        process = psutil.Process(pid)
        daemons = [child for child in process.children() if child.name().startswith("p2pd")]
        status = _fields_of(pid, "status")
        rollup = _fields_of(pid, "smaps_rollup")
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
        return Sample(
            at_s=at_s,
            rss_bytes=status["VmRSS"],
            peak_rss_bytes=status["VmHWM"],
            pss_bytes=rollup["Pss"],
            own_bytes=rollup["Private_Clean"] + rollup["Private_Dirty"],
            daemon_rss_bytes=sum(daemon.memory_info().rss for daemon in daemons),
            num_threads=status["Threads"] // _KIB,
            num_descriptors=process.num_fds(),
            num_tasks=num_tasks,
            cpu_s=sum(sum(each.cpu_times()[:2]) for each in (process, *daemons)),
        )
    except (psutil.Error, OSError, KeyError):
        return None


def rss_of(pid: int) -> int:
    """Resident bytes now. Raises OSError where the process has gone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def own_bytes_of(pid: int) -> int:
    """Resident bytes now, without pages of files, such as libraries. Raises OSError, likewise."""
    status = _fields_of(pid, "status")
    return status["RssAnon"] + status["RssShmem"]


def _page_bytes() -> int:
    import resource

    return resource.getpagesize()


_PAGE_BYTES: Final = _page_bytes()


def _fields_of(pid: int, file: str) -> dict[str, int]:
    """Numbers in a file of /proc/PID whose lines are `Name:  123 kB`, taken as bytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            fields[name] = int(rest.split()[0]) * _KIB
    return fields


def windows(samples: Iterable[Sample], measure: str, window_s: float) -> list[Window]:
    """A measure's medians, minute by minute."""
    by_minute: dict[int, list[float]] = {}
    for sample in samples:
        by_minute.setdefault(int(sample.at_s // window_s), []).append(getattr(sample, measure))
    return [
        Window(
            minute=minute,
            median=statistics.median(values),
            least=min(values),
            largest=max(values),
        )
        for minute, values in sorted(by_minute.items())
    ]


def deviation(found: Sequence[Window], warm_up: int) -> float | None:
    """Largest distance of a later window's median from that of window `warm_up`, as a share of it.

    None where nothing came after the warm-up.
    """
    level = next((window.median for window in found if window.minute == warm_up), None)
    later = [window.median for window in found if window.minute > warm_up]
    if level is None or not later:
        return None
    return max(abs(median / level - 1) for median in later)


def growth(found: Sequence[Window], warm_up: int) -> float | None:
    """By how much the last third of the windows after the warm-up is above the first third.

    Medians of the windows' medians. None where there are fewer than three.
    """
    later = [window.median for window in found if window.minute >= warm_up]
    third = len(later) // 3
    if not third:
        return None
    return statistics.median(later[-third:]) - statistics.median(later[:third])
