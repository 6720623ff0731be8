"""How well a plan's predicted time fits the measured one.

Peers play some rounds, learn of their links from what crosses them, and say so; each further round
has the plan that a coordinator would make of what they say, and its prediction is made beforehand
from the same words. Only the round trip is taken as configured.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.table import Table

from experiments.testbed import measuring, results
from experiments.testbed.bed import Bed
from experiments.testbed.contenders.zoonet_averager import links_as_told, plan_as_told
from experiments.testbed.layout import Layout, Link
from experiments.testbed.measuring import Rules, Run, Spread, middle, spread
from experiments.testbed.nursery import Nursery
from experiments.testbed.results import Bars, Goal
from experiments.testbed.troupe import Performance, Troupe
from zoonet.averaging.forecast import Forecast, Payload, predict

CONTENDER: Final = "zoonet-learned"
CONTENDERS: Final = (CONTENDER,)
NUM_TO_LEARN: Final = 3  # rounds before those that count, and one more that only warms up
TOLERANCE: Final = 0.15
MIB: Final = 1 << 20


def link_of(options: argparse.Namespace) -> Link:
    """Slow enough for one process to carry four sites' packets."""
    return Link(
        rate_bits_per_s=options.forecast_mbit * 1e6,
        rtt_s=options.rtt_ms / 1e3,
        mtu_bytes=options.mtu,
        congestion_control=options.congestion_control,
    )


def case_of(text: str, size_mib: float) -> str:
    """How a layout and a payload are called in results."""
    return f"{text}, {size_mib:g} MiB"


async def measure_layout(
    text: str, size_mib: float, options: argparse.Namespace, nursery: Nursery, folder: Path
) -> list[Run]:
    """All runs of one layout and payload; each run says what was predicted of it."""
    folder = folder / case_of(text, size_mib).replace(", ", "-").replace(" ", "")
    folder.mkdir()
    link, rules = link_of(options), Rules(options.smoke, options.others_cores)
    num_values = int(size_mib * MIB) // 4
    async with (
        Bed.open(Layout.parse(text), link) as bed,
        Troupe.open(bed, CONTENDERS, nursery, num_values, folder) as troupe,
    ):

        async def measure_one(name: str, lap: int) -> Run:
            predicted: list[Forecast] = []

            async def perform() -> Performance:
                prepared = await troupe.prepare(name)
                plan = plan_as_told(prepared.told, num_values)
                links, payload = links_as_told(prepared.told), Payload(num_values=num_values)
                predicted.append(
                    predict(plan, links, links, payload, wan_rtt_s=link.rtt_s, shares_lines=True)
                )
                began = troupe.go(name, prepared)
                return await troupe.finish(prepared, began, set(troupe.actors))

            run = await measuring.measure(
                bed, perform, rules, case=case_of(text, size_mib), contender=name, lap=lap
            )
            return replace(run, more=run.more | _told_of(predicted))

        learning = [await measure_one(CONTENDER, -1) for _ in range(NUM_TO_LEARN)]
        return learning + await measuring.by_turns(CONTENDERS, options.repeats, measure_one)


def _told_of(predicted: list[Forecast]) -> dict[str, object]:
    if not predicted:
        return {}
    (forecast,) = predicted
    return {
        "predicted_s": forecast.total_s,
        "bottleneck": forecast.link,
        "bottleneck_bytes": forecast.link_bytes,
        "bottleneck_bytes_per_s": forecast.link_bytes_per_s,
        "latency_s": forecast.latency_s,
    }


def cases(options: argparse.Namespace) -> list[tuple[str, float]]:
    """Every layout with every payload."""
    sizes = [float(size) for size in options.forecast_mib.split(",")]
    return [(text, size) for text in options.layouts.split(",") for size in sizes]


def predictions(runs: list[Run], case: str) -> Spread | None:
    """Predicted seconds of the runs that count."""
    counted = measuring.of(runs, case, CONTENDER)
    return spread(float(run.more["predicted_s"]) for run in counted if "predicted_s" in run.more)


def errors(runs: list[Run], case: str) -> Spread | None:
    """Predicted over measured time, less one, run by run."""
    return spread(
        float(run.more["predicted_s"]) / run.seconds - 1
        for run in measuring.of(runs, case, CONTENDER)
        if "predicted_s" in run.more
    )


def goals_of(runs: list[Run], options: argparse.Namespace) -> list[Goal]:
    """What was promised of every layout and payload."""
    goals = []
    for text, size in cases(options):
        error = middle(errors(runs, case_of(text, size)))
        name = f"{case_of(text, size)}: |predicted / measured - 1|"
        goals.append(Goal(name, None if error is None else abs(error), TOLERANCE))
    return goals


def table_of(runs: list[Run], options: argparse.Namespace) -> Table:
    """What a person reads."""
    link = link_of(options)
    table = Table(
        title=f"predicted and measured, lines of {link.rate_bits_per_s / 1e6:g} Mbit/s, "
        f"RTT {link.rtt_s * 1e3:g} ms"
    )
    for column in ("sites, payload", "predicted", "measured", "difference", "line as learned"):
        table.add_column(column, justify="left" if column == "sites, payload" else "right")
    for text, size in cases(options):
        case = case_of(text, size)
        counted, error = measuring.of(runs, case, CONTENDER), errors(runs, case)
        rate = spread(8e-6 * float(run.more["bottleneck_bytes_per_s"]) for run in counted)
        table.add_row(
            case,
            results.seconds_cell(predictions(runs, case)),
            results.seconds_cell(spread(run.seconds for run in counted)),
            f"{error.median:+.1%} ({error.least:+.0%} - {error.largest:+.0%})" if error else "-",
            f"{rate.median:.1f} Mbit/s" if rate else "-",
        )
    return table


def bars_of(runs: list[Run], options: argparse.Namespace) -> list[Bars]:
    """What is drawn: for each payload both times of every layout."""
    groups: dict[float, dict[str, Spread | None]] = {}
    for text, size in cases(options):
        case, values = case_of(text, size), groups.setdefault(size, {})
        values[f"{text} predicted"] = predictions(runs, case)
        values[f"{text} measured"] = spread(
            run.seconds for run in measuring.of(runs, case, CONTENDER)
        )
    return [Bars(f"{size:g} MiB", values) for size, values in groups.items()]
