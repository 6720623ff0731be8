"""What a benchmark leaves: one JSON, one plot, and tables on the terminal."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.testbed import measuring
from experiments.testbed.measuring import Run, Spread

RESULTS: Final = Path(__file__).parent.parent / "results"
_COLOURS: Final = ("#1f6f8b", "#99a8b2", "#e6a23c", "#c0504d", "#6aa84f", "#8e7cc3", "#444444")


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that was promised, and what it came to. `at_most` tells the direction."""

    name: str
    value: float | None  # None where no run counted
    goal: float
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it was kept."""
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def write(
    name: str,
    question: str,
    runs: Sequence[Run],
    goals: Sequence[Goal],
    *,
    settings: dict[str, Any],
    is_smoke: bool,
    out: Path | None = None,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write the JSON of a benchmark; return where. A smoke run's figures prove nothing."""
    result = {
        "question": question,
        "is_smoke": is_smoke,
        "goals": [
            {
                "name": goal.name,
                "value": goal.value,
                "goal": goal.goal,
                "better": "less" if goal.at_most else "more",
                "is_met": goal.is_met,
            }
            for goal in goals
        ],
        "summary": summary(runs),
        "discarded": measuring.discarded(runs),
        **(more or {}),
        "settings": settings,
        "command": command_line(name, sys.argv[1:]),
        "machine": machine.facts(),
        "runs": measuring.as_json(runs),
    }
    path = out or place_of(name, is_smoke=is_smoke)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def command_line(name: str, arguments: Sequence[str]) -> str:
    """What repeats a benchmark. Where its result was to lie is no part of that."""
    kept: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--out":
            next(remaining, None)
        elif not argument.startswith("--out="):
            kept.append(argument)
    return shlex.join(["python", "-m", f"experiments.{name}", *kept])


def place_of(name: str, *, is_smoke: bool) -> Path:
    """Where a benchmark's JSON goes: a smoke run's, which proves no figure, is not kept."""
    folder = Path(tempfile.gettempdir()) / "zoonet-smoke" if is_smoke else RESULTS
    return folder / f"{name}.json"


def beside(out: Path | None, name: str, part: str, *, is_smoke: bool) -> Path:
    """Where one of a benchmark's several questions has its JSON."""
    path = out or place_of(name, is_smoke=is_smoke)
    return path.with_name(f"{path.stem}-{part}.json")


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Medians with least and largest, for each contender in each case."""
    rows = []
    for case, contender in dict.fromkeys((run.case, run.contender) for run in runs):
        counted = measuring.of(runs, case, contender)
        rows.append(
            {
                "case": case,
                "contender": contender,
                "num_runs": len(counted),
                "seconds": _as_dict(measuring.spread(run.seconds for run in counted)),
                # Of the peers' own processes; hivemind works in others of its own.
                "cpu_s": _as_dict(measuring.spread(run.cpu_s for run in counted)),
                "match_s": _as_dict(measuring.spread(run.match_s for run in counted)),
                "crossing_bytes": _as_dict(
                    measuring.spread(float(run.crossing_bytes) for run in counted)
                ),
                "largest_num_digests": max((run.num_digests for run in counted), default=0),
            }
        )
    return rows


def _as_dict(found: Spread | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"median": found.median, "least": found.least, "largest": found.largest}


def goals_table(goals: Iterable[Goal]) -> Table:
    """What was promised, and what came of it."""
    table = Table(title="goals")
    for column in ("measure", "goal", "measured", ""):
        table.add_column(column, justify="left" if column in ("measure", "") else "right")
    for goal in goals:
        sign = "<=" if goal.at_most else ">="
        measured = "no run counted" if goal.value is None else f"{goal.value:.3f}"
        verdict = "[green]met" if goal.is_met else "[red]not met"
        table.add_row(goal.name, f"{sign} {goal.goal:g}", measured, verdict)
    return table


def show(*tables: Table) -> None:
    """Print tables to stdout."""
    for table in tables:
        Console().print(table)


def seconds_cell(found: Spread | None) -> str:
    """Median with least and largest, in seconds."""
    if found is None:
        return "-"
    return f"{found.median:.3f} ({found.least:.2f} - {found.largest:.2f})"


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars: its title, and for each label a spread."""

    title: str
    values: dict[str, Spread | None]
    line: float | None = None  # a bound or a goal, drawn across
    line_label: str = ""


def plot(path: Path, title: str, unit: str, groups: Sequence[Bars]) -> None:
    """Draw horizontal bars with their least and largest, one panel for each group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(len(group.values) for group in groups)
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 1.4 + 0.5 * longest), squeeze=False
    )
    for panel, group in zip(axes[0], groups, strict=True):
        _draw(panel, group, unit)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(panel: Any, group: Bars, unit: str) -> None:
    labels = list(group.values)
    for row, label in enumerate(labels):
        found = group.values[label]
        if found is None:
            panel.text(0.02, row, "no run counted", transform=panel.get_yaxis_transform())
            continue
        errors = [[found.median - found.least], [found.largest - found.median]]
        colour = _COLOURS[row % len(_COLOURS)]
        panel.barh(row, found.median, xerr=errors, color=colour, capsize=3)
        panel.text(found.largest, row, f"  {found.median:.3g}", va="center", fontsize=8)
    if group.line is not None:
        panel.axvline(group.line, color="black", linestyle="--", linewidth=1)
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.margins(x=0.18)
    panel.set_xlabel(unit)
    dashes = f"   (dashed: {group.line_label})" if group.line is not None else ""
    panel.set_title(group.title + dashes, fontsize=10)
