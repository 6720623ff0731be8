"""What does an all-reduce send between sites, and how well does it use their links?

Three questions: how many bytes cross (4+4, 2x4, 6x4 and 5+2+1 peers; against a butterfly, a ring
and the bound), how much of a 100 Mbit/s, 50 ms link is used (against hivemind and raw TCP), and
how well plans' predicted times fit the measured ones.

    sudo python -m experiments.wan
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from experiments.testbed import command, kernel, results
from experiments.testbed.measuring import Run
from experiments.testbed.nursery import Nursery
from experiments.testbed.results import Bars, Goal
from experiments.wan import crossing, forecasting, link_use

QUESTION: Final = {
    "crossing": "How many bytes does an all-reduce send between sites?",
    "use": "How much of the link between two sites does an all-reduce use?",
    "forecast": "How well does a plan's predicted time fit the measured one?",
}
LAYOUTS: Final = {
    "crossing": "4+4,2x4,6x4,5+2+1",
    "use": "1+1",
    "forecast": "1+1,4+4,2x4,5+2+1",
}
UNIT: Final = {"crossing": "payloads", "use": "share of the link", "forecast": "seconds"}
Answer = Callable[
    [argparse.Namespace, Path], Awaitable[tuple[list[Run], list[Goal], Table, list[Bars]]]
]
EVERYBODY: Final = tuple(
    dict.fromkeys((*crossing.CONTENDERS, *link_use.CONTENDERS, *forecasting.CONTENDERS))
)


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = command.parser("wan", __doc__)
    parser.add_argument("--only", choices=tuple(QUESTION), help="one of the questions")
    parser.add_argument("--layouts", help="sites, by comma, for the bytes and the predictions")
    parser.add_argument("--crossing-mib", type=float, default=2, help="payload, for the bytes")
    parser.add_argument("--crossing-mbit", type=float, default=50, help="rate, for the bytes")
    parser.add_argument("--use-mib", default="16,64", help="payloads, for the use of the link")
    parser.add_argument("--forecast-mib", default="2,8", help="payloads, for the predictions")
    parser.add_argument("--forecast-mbit", type=float, default=20, help="rate, for the predictions")
    parser.add_argument("--rate-mbit", type=float, default=100)
    parser.add_argument("--rtt-ms", type=float, default=50)
    parser.add_argument("--mtu", type=int, default=1500, help="bytes of a packet (default 1500)")
    parser.add_argument("--congestion-control", default="bbr", help="of everyone's TCP")
    options = parser.parse_args()
    if options.smoke:
        options.layouts, options.crossing_mib, options.use_mib = "2+1", 0.25, "0.5"
        options.forecast_mib = "0.5"
        options.repeats = 1
    return options


async def answer_crossing(
    options: argparse.Namespace, folder: Path
) -> tuple[list[Run], list[Goal], Table, list[Bars]]:
    """Measure the bytes."""
    names = command.chosen(options, EVERYBODY, crossing.CONTENDERS)
    names = tuple(name for name in names if name in crossing.CONTENDERS)
    layouts, size = options.layouts.split(","), crossing.payload_bytes(options)
    runs: list[Run] = []
    async with Nursery.open(names) as nursery:
        for text in layouts:
            runs += await crossing.measure_layout(text, names, options, nursery, folder)
    return (
        runs,
        crossing.goals_of(runs, layouts, size),
        crossing.table_of(runs, layouts, names, size),
        crossing.bars_of(runs, layouts, names, size),
    )


async def answer_use(
    options: argparse.Namespace, folder: Path
) -> tuple[list[Run], list[Goal], Table, list[Bars]]:
    """Measure the use of the link."""
    usual = ("zoonet", "raw-tcp") if options.smoke else link_use.CONTENDERS
    names = command.chosen(options, EVERYBODY, usual)
    names = tuple(name for name in names if name in link_use.CONTENDERS)
    sizes, link = [float(size) for size in options.use_mib.split(",")], link_use.link_of(options)
    runs: list[Run] = []
    for size_mib in sizes:
        runs += await link_use.measure_size(size_mib, names, options, folder)
    return (
        runs,
        link_use.goals_of(runs, sizes, link),
        link_use.table_of(runs, sizes, names, link),
        link_use.bars_of(runs, sizes, names, link),
    )


async def answer_forecast(
    options: argparse.Namespace, folder: Path
) -> tuple[list[Run], list[Goal], Table, list[Bars]]:
    """Measure how well times are predicted."""
    runs: list[Run] = []
    async with Nursery.open(forecasting.CONTENDERS) as nursery:
        for text, size_mib in forecasting.cases(options):
            runs += await forecasting.measure_layout(text, size_mib, options, nursery, folder)
    return (
        runs,
        forecasting.goals_of(runs, options),
        forecasting.table_of(runs, options),
        forecasting.bars_of(runs, options),
    )


def settings_of(options: argparse.Namespace, question: str) -> dict[str, Any]:
    """What a repetition needs to know."""
    module = {"crossing": crossing, "use": link_use, "forecast": forecasting}[question]
    sizes = {
        "crossing": options.crossing_mib,
        "use": options.use_mib,
        "forecast": options.forecast_mib,
    }
    link = module.link_of(options)
    return {
        "layouts": "1+1" if question == "use" else options.layouts,
        "payload_mib": sizes[question],
        "rate_bits_per_s_of_each_way_of_a_site": link.rate_bits_per_s,
        "rtt_s": link.rtt_s,
        "mtu_bytes": link.mtu_bytes,
        "queue_bytes": link.queue_bytes,
        "congestion_control": link.congestion_control,
        "tcp_slow_start_after_idle": 0,
        "rest_before_each_round_s": link_use.REST_S if question == "use" else 0,
        "repeats": options.repeats,
    }


def main() -> None:
    """Run, print tables, write a JSON and a plot for each question."""
    options = parse()
    command.require(kernel.require_namespaces)
    answers: dict[str, Answer] = {
        "crossing": answer_crossing,
        "use": answer_use,
        "forecast": answer_forecast,
    }
    layouts = options.layouts
    for question, answer in answers.items():
        if options.only not in (None, question):
            continue
        options.layouts = layouts or LAYOUTS[question]
        runs, goals, table, bars = command.run(partial(answer, options))
        path = results.write(
            "wan",
            QUESTION[question],
            runs,
            goals,
            settings=settings_of(options, question),
            is_smoke=options.smoke,
            out=results.beside(options.out, "wan", question, is_smoke=options.smoke),
        )
        results.plot(path.with_suffix(".png"), QUESTION[question], UNIT[question], bars)
        results.show(table, results.goals_table(goals))


if __name__ == "__main__":
    main()
