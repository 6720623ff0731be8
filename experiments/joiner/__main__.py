"""How much of its downlink does a newcomer use while it fetches the state of a job?

Five donors, each with a slow way up, hold the same state; a joiner, whose way down is as wide as
all of theirs together, fetches it. Seconds are those of one download, from the wish to the state
in place and checked. The use of the downlink is the least time in which these bytes could come
(as the payload of full TCP packets, without a round trip) as a share of the time they took.

    sudo python -m experiments.joiner
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from experiments.testbed import command, kernel, measuring, probes, results
from experiments.testbed.bed import PEER_INTERFACE, Bed
from experiments.testbed.casts import open_cast
from experiments.testbed.delay_line import INTERFACE as WAN
from experiments.testbed.layout import Layout, Link
from experiments.testbed.machine_load import Moment
from experiments.testbed.measuring import Rules, Run, Spread, middle, spread
from experiments.testbed.results import Bars, Goal
from experiments.testbed.troupe import ActorFailed, Troupe

QUESTION: Final = "How much of its downlink does a newcomer use while it fetches a job's state?"
OURS: Final = "zoonet_state"
CEILING: Final = "raw_senders"
RIVAL: Final = "hivemind_state"
EVERYBODY: Final = (OURS, CEILING, RIVAL)
CASE: Final = "state"
GOAL_SHARE: Final = 0.95
MIB: Final = 1 << 20
LOOK_AGAIN_S: Final = 0.05
GIVE_UP_S: Final = 120.0
UP_QUEUE_BYTES: Final = 256_000  # before a donor's way up


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = command.parser("joiner", __doc__)
    parser.add_argument("--donors", type=int, default=5)
    parser.add_argument("--size-mib", type=float, default=64)
    parser.add_argument("--up-mbit", type=float, default=20, help="of each donor")
    parser.add_argument("--down-mbit", type=float, default=100, help="of the joiner")
    parser.add_argument("--rtt-ms", type=float, default=50)
    parser.add_argument("--congestion-control", default="bbr")
    options = parser.parse_args()
    if options.smoke:
        options.size_mib, options.repeats = 8.0, 1
    return options


def link_of(options: argparse.Namespace) -> Link:
    """The joiner's."""
    return Link(
        rate_bits_per_s=options.down_mbit * 1e6,
        rtt_s=options.rtt_ms / 1e3,
        congestion_control=options.congestion_control,
    )


def narrow_donors(bed: Bed, bits_per_s: float) -> None:
    """Give every donor its way up; its way down stays as wide as the joiner's."""
    for donor in range(bed.layout.num_peers - 1):
        kernel.shape(bed.router_of(donor), WAN, bits_per_s, UP_QUEUE_BYTES)


class Session:
    """All contenders on one bed, by turns."""

    def __init__(self, bed: Bed, troupes: dict[str, Troupe], options: argparse.Namespace) -> None:
        self._bed = bed
        self._troupes = troupes
        self._options = options
        self._rules = Rules(options.smoke, options.others_cores)
        self._joiner = bed.layout.num_peers - 1

    async def measure_one(self, name: str, lap: int) -> Run:
        """One download, and whether it counts."""
        why_not = await self._link_complaint(lap)
        await self._bed.line_figures()  # from here on
        load, before, bytes_before = os.getloadavg()[0], Moment.now(), self._counted()
        try:
            found = await self._download(self._troupes[name])
        except ActorFailed as error:
            found, why_not = {}, f"failed: {error}"
        others_cores = Moment.now().others_cores_since(before)
        counted = [now - then for now, then in zip(self._counted(), bytes_before, strict=True)]
        line = await self._bed.line_figures()
        if not why_not and not found["is_right"]:
            why_not = "wrong state"
        if others_cores > self._options.others_cores and not self._options.smoke:
            why_not = why_not or f"busy machine: others used {others_cores:.2f} cores"
        why_not = why_not or self._rules.line_complaint(line) or ("warm-up" if lap < 0 else "")
        run = Run(
            case=CASE,
            contender=name,
            lap=lap,
            seconds=found["ended"] - found["began"] if found else 0.0,
            crossing_bytes=counted[-1].received_bytes,
            crossing_packets=counted[-1].received_packets,
            cpu_s=found.get("cpu_s", 0.0),
            load_1_min=round(load, 2),
            others_cores=round(others_cores, 3),
            why_not=why_not,
            more={"sent_by_donor": [each.sent_bytes for each in counted[:-1]], "delay_line": line},
        )
        measuring.tell(run)
        return run

    async def _link_complaint(self, lap: int) -> str:
        """What is wrong with one donor's way to the joiner, another one's each lap."""
        if self._options.smoke:
            return ""
        complaint = await measuring.silence(self._bed)
        donor, wanted = lap % self._joiner, self._options.up_mbit * 1e6
        looked = await probes.look(self._bed, donor, self._joiner)
        return complaint or looked.complaint(self._bed, wanted)

    def _counted(self) -> list[kernel.Counters]:
        """What every peer's interface has sent and received so far; the joiner's is the last."""
        peers = range(self._bed.layout.num_peers)
        return [kernel.counters(self._bed.namespace_of(peer), PEER_INTERFACE) for peer in peers]

    async def _download(self, troupe: Troupe) -> dict[str, Any]:
        name = troupe.contenders[0]
        actor = troupe.actors[self._joiner]
        began = await actor.ask({"do": "train", "contender": name}, GIVE_UP_S)
        deadline = time.monotonic() + GIVE_UP_S
        while began["is"] != "failed" and time.monotonic() < deadline:
            answer = await actor.ask({"do": "figures", "contender": name}, GIVE_UP_S)
            if answer["is"] == "failed":
                raise ActorFailed(answer["error"])
            if answer["figures"]:
                figures: dict[str, Any] = answer["figures"]
                return figures
            await asyncio.sleep(LOOK_AGAIN_S)
        raise ActorFailed(began.get("error", f"no state after {GIVE_UP_S:.0f} s"))


def use(runs: list[Run], name: str, options: argparse.Namespace) -> Spread | None:
    """The share of the downlink that was state."""
    link = link_of(options)
    best_s = options.size_mib * MIB * 8 / (link.rate_bits_per_s * link.payload_share)
    return spread(best_s / run.seconds for run in measuring.of(runs, CASE, name))


def table_of(runs: list[Run], names: tuple[str, ...], options: argparse.Namespace) -> Table:
    """What a person reads."""
    table = Table(title=f"{options.size_mib:g} MiB from {options.donors} donors")
    for column in ("contender", "seconds", "use of the downlink", "received, MB", "runs"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name in names:
        counted = measuring.of(runs, CASE, name)
        received = spread(run.crossing_bytes / 1e6 for run in counted)
        table.add_row(
            name,
            results.seconds_cell(spread(run.seconds for run in counted)),
            str(use(runs, name, options) or "-"),
            str(received or "-"),
            str(len(counted)),
        )
    return table


async def everything(
    options: argparse.Namespace, names: tuple[str, ...], folder: Path
) -> list[Run]:
    """All runs of everybody."""
    layout = Layout((1,) * (options.donors + 1))
    num_values = int(options.size_mib * MIB) // 4
    groups = tuple((name,) for name in EVERYBODY)
    async with Bed.open(layout, link_of(options)) as bed:
        narrow_donors(bed, options.up_mbit * 1e6)
        async with open_cast(bed, groups, names, num_values, folder) as troupes:
            session = Session(bed, troupes, options)
            return await measuring.by_turns(names, options.repeats, session.measure_one)


def main() -> None:
    """Run, print tables, write one JSON and one plot."""
    options = parse()
    command.require(kernel.require_namespaces)
    names = command.chosen(options, EVERYBODY, EVERYBODY)
    runs = command.run(lambda folder: everything(options, names, folder))
    ours = use(runs, OURS, options)
    goals = [Goal("share of the joiner's downlink", middle(ours), GOAL_SHARE, at_most=False)]
    settings = {
        "donors": options.donors,
        "size_mib": options.size_mib,
        "up_mbit": options.up_mbit,
        "down_mbit": options.down_mbit,
        "rtt_ms": options.rtt_ms,
        "congestion_control": options.congestion_control,
        "repeats": options.repeats,
    }
    path = results.write(
        "joiner",
        QUESTION,
        runs,
        goals,
        settings=settings,
        is_smoke=options.smoke,
        out=options.out,
    )
    bars = {name: use(runs, name, options) for name in names}
    goal = Bars("", bars, GOAL_SHARE, f"goal {GOAL_SHARE:g}")
    results.plot(path.with_suffix(".png"), QUESTION, "share of the downlink", [goal])
    results.show(table_of(runs, names, options), results.goals_table(goals))


if __name__ == "__main__":
    main()
