"""P3: how much of a link between two sites an all-reduce uses.

The best that can be is S bytes in each direction at the link's rate, less TCP's and IP's headers,
and two round trips.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Final

from rich.table import Table

from experiments.testbed import measuring, results
from experiments.testbed.bed import Bed
from experiments.testbed.casts import open_cast
from experiments.testbed.layout import Layout, Link
from experiments.testbed.measuring import Rules, Run, Spread, middle, spread
from experiments.testbed.results import Bars, Goal

CONTENDERS: Final = ("zoonet", "raw-tcp", "hivemind")
HOSTED_TOGETHER: Final = (("zoonet",), ("raw-tcp",), ("hivemind",))
MIB: Final = 1 << 20
# A round comes after seconds of training. For BBR the pause matters: after ten seconds it renews
# its least round trip with the first acknowledgement, while in a round before that it stops for a
# quarter of a second. So everyone's connections rest that long, whatever their place in the order.
REST_S: Final = 10.5


def link_of(options: argparse.Namespace) -> Link:
    """100 Mbit/s and 50 ms, unless told otherwise."""
    return Link(
        rate_bits_per_s=options.rate_mbit * 1e6,
        rtt_s=options.rtt_ms / 1e3,
        mtu_bytes=options.mtu,
        congestion_control=options.congestion_control,
    )


def case_of(size_mib: float) -> str:
    """How a payload is called in results."""
    return f"{size_mib:g} MiB"


async def measure_size(
    size_mib: float, names: tuple[str, ...], options: argparse.Namespace, folder: Path
) -> list[Run]:
    """All runs of one payload, between two sites of one peer."""
    folder = folder / f"use-{size_mib:g}"
    folder.mkdir()
    rules = Rules(options.smoke, options.others_cores)
    num_values = int(size_mib * MIB) // 4
    async with (
        Bed.open(Layout((1, 1)), link_of(options)) as bed,
        open_cast(bed, HOSTED_TOGETHER, names, num_values, folder) as troupes,
    ):
        rested: dict[str, float] = {}

        async def measure_one(name: str, lap: int) -> Run:
            await asyncio.sleep(rested.get(name, 0.0) - time.monotonic())
            run = await measuring.measure(
                bed,
                lambda: troupes[name].perform(name),
                rules,
                case=case_of(size_mib),
                contender=name,
                lap=lap,
            )
            rested[name] = time.monotonic() + (0.0 if options.smoke else REST_S)
            return run

        return await measuring.by_turns(names, options.repeats, measure_one)


def use(runs: list[Run], size_mib: float, name: str, link: Link) -> Spread | None:
    """The ideal time as a share of the measured one."""
    ideal_s = link.ideal_s(size_mib * MIB)
    return spread(ideal_s / run.seconds for run in measuring.of(runs, case_of(size_mib), name))


def goals_of(runs: list[Run], sizes: list[float], link: Link) -> list[Goal]:
    """What was promised of every payload."""
    goals = []
    for size_mib in sizes:
        found = use(runs, size_mib, "zoonet", link)
        name = f"{case_of(size_mib)}: ideal time / ours"
        goals.append(Goal(name, middle(found), 0.97, at_most=False))
    return goals


def table_of(runs: list[Run], sizes: list[float], names: tuple[str, ...], link: Link) -> Table:
    """What a person reads."""
    table = Table(
        title=f"use of a link of {link.rate_bits_per_s / 1e6:g} Mbit/s, RTT {link.rtt_s * 1e3:g} ms"
    )
    for column in ("payload", "contender", "seconds", "use of the link", "before", "runs"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for size_mib in sizes:
        for name in names:
            counted = measuring.of(runs, case_of(size_mib), name)
            found = use(runs, size_mib, name, link)
            match = spread(run.match_s for run in counted)
            table.add_row(
                case_of(size_mib),
                name,
                results.seconds_cell(spread(run.seconds for run in counted)),
                f"{found.median:.1%}" if found else "-",
                f"{match.median:.2f} s" if match else "-",
                str(len(counted)),
            )
        table.add_row("", "ideal", f"{link.ideal_s(size_mib * MIB):.3f}", "100 %", "", "")
        table.add_section()
    return table


def bars_of(runs: list[Run], sizes: list[float], names: tuple[str, ...], link: Link) -> list[Bars]:
    """What is drawn."""
    groups = []
    for size_mib in sizes:
        found = {name: use(runs, size_mib, name, link) for name in names}
        groups.append(Bars(case_of(size_mib), found, 0.97, "goal"))
    return groups
