"""What a person reads: tables, and the loss against tokens and against time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from experiments.efficiency import table, wall
from experiments.efficiency.contenders import contenders_of
from experiments.efficiency.wall import Line
from experiments.testbed.measuring import spread


def tables(
    entries: Sequence[table.Entry], num_peers: int, lines: Sequence[Line], step_tokens: int
) -> list[Table]:
    """Token efficiency, E in its parts, and races."""
    return [
        _tokens_table(entries, num_peers),
        _efficiency_table(entries, num_peers, lines),
        _races_table(entries, num_peers, lines, step_tokens),
    ]


def _made(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    made = Table(title=title)
    for column in left:
        made.add_column(column)
    for column in right:
        made.add_column(column, justify="right")
    return made


def _tokens_table(entries: Sequence[table.Entry], num_peers: int) -> Table:
    right = ("best lr", "held-out loss", "worth, best twin", "worth, same batch", "seeds")
    made = _made(f"token efficiency, {num_peers} peers", ("who",), right)
    for worth in table.worths(entries, num_peers):
        sign = "<= " if worth.num_bounds else ">= " if worth.num_better else ""
        best, same = worth.tokens, spread(worth.of_same_batch)
        made.add_row(
            worth.contender,
            f"{worth.inner_lr:g}",
            str(spread(worth.losses)),
            f"{sign}{best}" if best else "-",
            str(same or "-"),
            str(len(worth.losses)),
        )
    return made


def _efficiency_table(
    entries: Sequence[table.Entry], num_peers: int, lines: Sequence[Line]
) -> Table:
    right = ("tokens", "utilisation", "goodput", "E", "runs")
    made = _made("E = tokens x utilisation x goodput", ("who", "link", "measured as"), right)
    for one in wall.efficiencies(entries, num_peers, lines):
        parts = (one.token_efficiency, one.utilisation, one.goodput, one.whole)
        cells = [f"{part:.3f}" for part in parts]
        made.add_row(one.contender, one.link, one.measured_as, *cells, str(one.num_runs))
    return made


def _races_table(
    entries: Sequence[table.Entry], num_peers: int, lines: Sequence[Line], step_tokens: int
) -> Table:
    left = ("who", "link", "to loss", "rival's best setting")
    made = _made("time to the same loss", left, ("s", "rival, s", "times faster", "goal"))
    for one in wall.races(entries, num_peers, lines, step_tokens):
        goal = wall.GOALS.get(one.family)
        made.add_row(
            one.contender,
            one.link,
            f"{one.target:.3f}",
            one.rival,
            f"{one.seconds:.0f}",
            f"{one.rival_s:.0f}",
            f"{one.bound} {one.ratio:.2f}".strip(),
            f"{goal:g}" if goal else "",
        )
    return made


def plot(
    entries: Sequence[table.Entry],
    num_peers: int,
    lines: Sequence[Line],
    step_tokens: int,
    path: Path,
) -> None:
    """One panel over tokens, and one over time for each link; a line a contender."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 1 + len(lines), figsize=(5.5 * (1 + len(lines)), 4.5), squeeze=False
    )
    names = [contender.name for contender in contenders_of(num_peers)]
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    for name in names:
        _draw(axes[0][0], entries, num_peers, name, name, colours[name], 1e6)
    axes[0][0].set_xlabel("training tokens, millions")
    for panel, line in zip(axes[0][1:], lines, strict=True):
        for pace in wall.paces_of(num_peers, line, step_tokens):
            colour, speed = colours[pace.learns_as], pace.tokens_per_s
            style = {"ours": "-", "centralised": "--"}.get(pace.family, ":")
            _draw(panel, entries, num_peers, pace.learns_as, pace.name, colour, speed, style)
        panel.set_xlabel("seconds with virtual accelerators")
        panel.set_title(f"{line.link} ({line.source})", fontsize=9)
    for panel in axes[0]:
        panel.set_xscale("log")
        panel.set_ylabel("held-out loss, nats a token")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(
    panel: Any,
    entries: Sequence[table.Entry],
    num_peers: int,
    learns_as: str,
    label: str,
    colour: str,
    tokens_a_unit: float,
    style: str = "-",
) -> None:
    """The run at the best rate in its course, first seed, and where each seed's ends."""
    ends = table.ends_of(entries, learns_as, num_peers)
    if not ends:
        return
    tokens, losses = zip(*ends[min(ends)]["curve"], strict=True)
    units = [one / tokens_a_unit for one in tokens]
    panel.plot(units, losses, style, color=colour, label=label, linewidth=1)
    panel.plot(
        [one["tokens"] / tokens_a_unit for one in ends.values()],
        [one["loss"] for one in ends.values()],
        "o",
        color=colour,
    )
