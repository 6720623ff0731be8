"""Which lines of a process hold more Python memory than they did some rounds ago."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any, Final

NUM_LINES: Final = 25
WARM_UP: Final = 40  # rounds before the level that is compared with

_FILTERS: Final = [tracemalloc.Filter(False, file) for file in (tracemalloc.__file__, __file__)]


class Traced:
    """What was allocated since a round that counts as warmed up. Costs much processor time."""

    def __init__(self) -> None:
        tracemalloc.start()
        self._level: tracemalloc.Snapshot | None = None
        self._level_round = 0

    def told(self, num_rounds: int) -> dict[str, Any]:
        """Bytes a round, in all and of the lines that grew most; empty during the warm-up."""
        if num_rounds < WARM_UP:
            return {}
        gc.collect()
        now = tracemalloc.take_snapshot().filter_traces(_FILTERS)
        if self._level is None:
            self._level, self._level_round = now, num_rounds
            return {}
        rounds = max(1, num_rounds - self._level_round)
        found = now.compare_to(self._level, "lineno")
        return {
            "rounds": rounds,
            "bytes_a_round": round(sum(each.size_diff for each in found) / rounds),
            "lines": [
                [round(each.size_diff / rounds), round(each.count_diff / rounds, 2), where(each)]
                for each in found[:NUM_LINES]
            ],
        }


def where(found: tracemalloc.StatisticDiff) -> str:
    """The line, by the last parts of its path."""
    frame = found.traceback[0]
    return "/".join(Path(frame.filename).parts[-3:]) + f":{frame.lineno}"
