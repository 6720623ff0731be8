"""How much of the machine somebody else uses while a benchmark runs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MAX_OTHERS_CORES: Final = 0.35  # used by processes that are none of ours while a run is on
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_KERNEL_THREADS: Final = 2  # their parent; network traffic of ours is worked off in some of them


@dataclass(frozen=True, slots=True)
class Moment:
    """Processor time that each foreign process has used until an instant."""

    at: float
    ticks: dict[int, int]

    @classmethod
    def now(cls) -> Self:
        """Look at every process that does not descend from this one. Takes some milliseconds."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and (fields := _stat_of(path)):
                parents[int(path.name)] = int(fields[1])
                ticks[int(path.name)] = int(fields[11]) + int(fields[12])
        foreign = {pid: used for pid, used in ticks.items() if _is_foreign(pid, parents)}
        return cls(time.monotonic(), foreign)

    def others_cores_since(self, earlier: Moment) -> float:
        """How many cores foreign processes have kept busy since then, on average."""
        used = sum(max(0, n - earlier.ticks.get(pid, n)) for pid, n in self.ticks.items())
        return used / _TICKS_PER_S / max(self.at - earlier.at, 1e-3)


def _stat_of(process: Path) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where the process has gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_foreign(pid: int, parents: dict[int, int]) -> bool:
    """Neither this process, nor a descendant of it, nor a thread of the kernel."""
    mine = os.getpid()
    while pid > 1:
        if pid in (mine, _KERNEL_THREADS):
            return False
        pid = parents.get(pid, 0)
    return True
