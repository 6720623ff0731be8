"""P2: how many bytes cross between sites, for sites of several shapes.

Counted by the kernel at every site's way out, so each byte counts once: headers,
acknowledgements and whatever was sent again are in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from rich.table import Table

from experiments.testbed import measuring
from experiments.testbed.bed import Bed
from experiments.testbed.layout import TCP_HEADER_BYTES, Layout, Link
from experiments.testbed.measuring import Rules, Run, Spread, spread
from experiments.testbed.nursery import Nursery
from experiments.testbed.results import Bars, Goal
from experiments.testbed.troupe import Troupe

CONTENDERS: Final = ("zoonet", "zoonet-butterfly", "ring")
MIB: Final = 1 << 20


async def measure_layout(
    text: str,
    names: tuple[str, ...],
    options: argparse.Namespace,
    nursery: Nursery,
    folder: Path,
) -> list[Run]:
    """All runs of one shape. Every peer's process hosts all contenders."""
    folder = folder / text
    folder.mkdir()
    layout = Layout.parse(text)
    link = link_of(options)
    rules = Rules(options.smoke, options.others_cores, is_timed=False)
    num_values = payload_bytes(options) // 4
    async with (
        Bed.open(layout, link) as bed,
        Troupe.open(bed, names, nursery, num_values, folder) as troupe,
    ):

        async def measure_one(name: str, lap: int) -> Run:
            return await measuring.measure(
                bed,
                lambda: troupe.perform(name),
                rules,
                case=text,
                contender=name,
                lap=lap,
            )

        return await measuring.by_turns(names, options.repeats, measure_one)


def link_of(options: argparse.Namespace) -> Link:
    """Slow enough for one process to carry four sites' packets."""
    return Link(
        rate_bits_per_s=options.crossing_mbit * 1e6,
        rtt_s=0.02,
        mtu_bytes=options.mtu,
        congestion_control=options.congestion_control,
        least_queue_bytes=1_000_000,
    )


def payload_bytes(options: argparse.Namespace) -> int:
    """S: the bytes of one peer's vector."""
    return int(options.crossing_mib * MIB) // 4 * 4


def payloads(
    runs: list[Run], text: str, name: str, size: int, *, less_headers: bool
) -> Spread | None:
    """What crossed in units of S: all of it, or less TCP's and IP's headers (52 bytes a packet)."""
    return spread(
        (run.crossing_bytes - less_headers * TCP_HEADER_BYTES * run.crossing_packets) / size
        for run in measuring.of(runs, text, name)
    )


def goals_of(runs: list[Run], layouts: list[str], size: int) -> list[Goal]:
    """What was promised of every shape."""
    goals = []
    for text in layouts:
        bound = Layout.parse(text).least_bytes(1)
        for less_headers in (False, True):
            found = payloads(runs, text, "zoonet", size, less_headers=less_headers)
            what = "less headers" if less_headers else "at the interface"
            value = found.median / bound if found else None
            goals.append(Goal(f"{text}: bytes {what} / 2(s-1)S", value, 1.02))
        if text == "6x4":
            ours = payloads(runs, text, "zoonet", size, less_headers=False)
            flat = payloads(runs, text, "zoonet-butterfly", size, less_headers=False)
            value = flat.median / ours.median if ours and flat else None
            goals.append(Goal(f"{text}: butterfly / ours", value, 5.8, at_most=False))
    return goals


def theory_of(layout: Layout, name: str) -> float:
    """What a contender must send between sites at the least, in units of S."""
    if name == "ring":
        return layout.ring_bytes(1)
    return layout.butterfly_bytes(1) if name.endswith("butterfly") else layout.least_bytes(1)


def table_of(runs: list[Run], layouts: list[str], names: tuple[str, ...], size: int) -> Table:
    """What a person reads."""
    table = Table(title=f"bytes between sites, in payloads of {size / MIB:g} MiB")
    for column in ("sites", "contender", "its theory", "at the interface", "less headers", "runs"):
        table.add_column(column, justify="left" if column in ("sites", "contender") else "right")
    for text in layouts:
        for name in names:
            raw = payloads(runs, text, name, size, less_headers=False)
            net = payloads(runs, text, name, size, less_headers=True)
            theory = f"{theory_of(Layout.parse(text), name):.2f} S"
            num = len(measuring.of(runs, text, name))
            table.add_row(text, name, theory, _cell(raw), _cell(net), str(num))
        table.add_section()
    return table


def _cell(found: Spread | None) -> str:
    return (
        "-" if found is None else f"{found.median:.3f} S ({found.least:.3f} - {found.largest:.3f})"
    )


def bars_of(runs: list[Run], layouts: list[str], names: tuple[str, ...], size: int) -> list[Bars]:
    """What is drawn."""
    groups = []
    for text in layouts:
        found = {n: payloads(runs, text, n, size, less_headers=False) for n in names}
        bound = Layout.parse(text).least_bytes(1)
        groups.append(Bars(text, found, bound, f"2(s-1)S = {bound:g} S"))
    return groups
