"""What does a death in the middle of a round cost the others?

At a set point of a round one peer is killed (its connections are reset), cut off (its packets
vanish), frozen or slowed down twenty times. It is a leaf, the root or a gateway of every tree, or
a peer of an ordinary plan. Measured is until the others have their mean, next to an undisturbed
round just before; and whether every mean is exactly that of whom it is said to be, the same for
everyone.

    sudo python -m experiments.deaths
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from experiments.deaths import faults
from experiments.deaths.faults import FAULTS, GOAL_S, ROLES, Fault, Role
from experiments.testbed import command, kernel, measuring, results
from experiments.testbed.bed import Bed
from experiments.testbed.layout import Layout, Link
from experiments.testbed.machine_load import Moment
from experiments.testbed.measuring import Rules, Run, Spread, middle, spread
from experiments.testbed.nursery import Nursery
from experiments.testbed.results import Bars, Goal
from experiments.testbed.troupe import ActorFailed, Performance, Troupe

QUESTION: Final = "What does a death in the middle of a round cost the others?"
OURS: Final = "rounds"
EVERYBODY: Final = (OURS, "hivemind")
MIB: Final = 1 << 20


def case_of(fault: Fault, role: Role) -> str:
    """How a fault is called in results."""
    return f"{fault} {role}"


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = command.parser("deaths", __doc__)
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these, by comma")
    parser.add_argument("--roles", default="leaf,any,root,gateway", help=f"of {', '.join(ROLES)}")
    parser.add_argument("--layout", default="3+3", help="peers of each site")
    parser.add_argument("--size-mib", type=float, default=8)
    parser.add_argument("--rate-mbit", type=float, default=100)
    parser.add_argument("--rtt-ms", type=float, default=50)
    parser.add_argument("--at", type=float, default=0.4, help="of a round, when it is lost")
    parser.add_argument("--give-up-s", type=float, default=60, help="of a disturbed round")
    options = parser.parse_args()
    if options.smoke:
        options.layout, options.size_mib, options.repeats = "1+2", 1.0, 1
        options.faults, options.roles = "reset", "leaf"
    return options


class Session:
    """One contender on one bed, through many deaths; with new processes for each."""

    def __init__(
        self, bed: Bed, nursery: Nursery, name: str, options: argparse.Namespace, folder: Path
    ) -> None:
        self.bed = bed
        self.name = name
        self._nursery = nursery
        self._options = options
        self._folder = folder
        self._rules = Rules(options.smoke, options.others_cores)

    @asynccontextmanager
    async def _troupe(self, role: Role) -> AsyncIterator[Troupe]:
        options = faults.options_of(role, self.bed.layout)
        num_values = int(self._options.size_mib * MIB) // 4
        async with Troupe.open(
            self.bed, [self.name], self._nursery, num_values, self._folder, options
        ) as troupe:
            yield troupe

    async def runs_of(self, role: Role, wanted: list[Fault]) -> list[Run]:
        """Every fault by turns, until each has `repeats` runs that count."""
        known = {str(fault): fault for fault in wanted}

        async def measure_one(fault: str, lap: int) -> Run:
            run = await self._run(known[fault], role, lap)
            measuring.tell(run)
            return run

        turns = tuple(known)
        return await measuring.by_turns(turns, self._options.repeats, measure_one, is_cold=True)

    async def _run(self, fault: Fault, role: Role, lap: int) -> Run:
        try:
            async with self._troupe(role) as troupe:
                return await self._disturb(troupe, fault, role, lap)
        except ActorFailed as error:
            case = case_of(fault, role)
            why_not = f"failed: {error}"
            return Run(case=case, contender=self.name, lap=lap, seconds=0.0, why_not=why_not)
        finally:
            self.bed.heal()

    async def _disturb(self, troupe: Troupe, fault: Fault, role: Role, lap: int) -> Run:
        """Warm up, take an undisturbed round's time, then lose a peer in the next one."""
        why_not = await self._rules.link_complaint(self.bed)
        await troupe.perform(self.name)
        calm = await troupe.perform(self.name)
        if calm.failures:
            raise ActorFailed(f"an undisturbed round failed: {calm.failures}")
        before = Moment.now()
        prepared = await troupe.prepare(self.name)
        victim = faults.victim_of(role, self.bed.layout, prepared.coordinator)
        began = troupe.go(self.name, prepared)
        at = faults.LEAF_AT if role == "leaf" else self._options.at
        await asyncio.sleep(began + at * calm.seconds - time.monotonic())
        faults.inflict(fault, self.bed, troupe, victim)
        survivors = set(troupe.actors) - {victim}
        disturbed = await troupe.finish(prepared, began, survivors, self._options.give_up_s)
        others_cores = Moment.now().others_cores_since(before)
        faults.undo(fault, self.bed, troupe, victim)
        if others_cores > self._options.others_cores and not self._options.smoke:
            why_not = why_not or f"busy machine: others used {others_cores:.2f} cores"
        return Run(
            case=case_of(fault, role),
            contender=self.name,
            lap=lap,
            seconds=disturbed.seconds,
            match_s=disturbed.match_s,
            num_digests=disturbed.num_digests,
            num_wrong=disturbed.num_wrong,
            others_cores=round(others_cores, 3),
            why_not=why_not,
            more=outcome_of(calm, disturbed, victim)
            | {"victim": victim, "coordinator": prepared.coordinator},
        )


def outcome_of(calm: Performance, disturbed: Performance, victim: int) -> dict[str, Any]:
    """What else is told of a disturbed round."""
    return {
        "calm_s": calm.seconds,
        "extra_s": disturbed.seconds - calm.seconds,
        "calm_num_digests": calm.num_digests,
        "contributors": disturbed.contributors,
        "is_victim_in": victim in disturbed.contributors,
        "num_left_out": len(set(calm.contributors) - {victim} - set(disturbed.contributors)),
        "failures": disturbed.failures,
        "num_silent_partial": disturbed.num_wrong,
    }


def extra(runs: list[Run], case: str, name: str) -> Spread | None:
    """How much longer disturbed rounds took, of those in which everyone got a mean."""
    counted = measuring.of(runs, case, name)
    return spread(run.more["extra_s"] for run in counted if not run.more["failures"])


def goals_of(runs: list[Run], cases: list[tuple[Fault, Role]]) -> list[Goal]:
    """What was promised."""
    goals = []
    for fault, role in cases:
        found = extra(runs, case_of(fault, role), OURS)
        goals.append(Goal(f"{fault} {role}: + s", middle(found), GOAL_S[fault]))
    ours = [run for run in runs if run.contender == OURS and run.counts]
    lost = [len(run.more["failures"]) for run in ours]
    left_out = [run.more["num_left_out"] for run in ours]
    partial = [run.num_wrong for run in ours]
    equal = [max(run.num_digests, run.more["calm_num_digests"]) == 1 for run in ours]
    goals += [
        Goal("silent partial averages", float(sum(partial)) if ours else None, 0.0),
        Goal("survivors without a mean", float(sum(lost)) if ours else None, 0.0),
        Goal("survivors left out of a mean", float(sum(left_out)) if ours else None, 0.0),
        Goal("rounds with equal replicas", sum(equal) / len(equal) if ours else None, 1.0, False),
    ]
    return goals


def table_of(runs: list[Run], cases: list[tuple[Fault, Role]], names: tuple[str, ...]) -> Table:
    """What a person reads."""
    table = Table(title="a peer lost in the middle of a round")
    left = ("lost", "contender")
    for column in (
        *left,
        "undisturbed, s",
        "longer by, s",
        "no mean",
        "left out",
        "partial",
        "runs",
    ):
        table.add_column(column, justify="left" if column in left else "right")
    for fault, role in cases:
        for name in names:
            counted = measuring.of(runs, case_of(fault, role), name)
            calm = spread(run.more["calm_s"] for run in counted)
            longer = extra(runs, case_of(fault, role), name)
            table.add_row(
                case_of(fault, role),
                name,
                f"{calm.median:.2f}" if calm else "-",
                results.seconds_cell(longer),
                str(sum(len(run.more["failures"]) for run in counted)),
                str(sum(run.more["num_left_out"] for run in counted)),
                str(sum(run.num_wrong for run in counted)),
                str(len(counted)),
            )
    return table


async def everything(options: argparse.Namespace, folder: Path) -> list[Run]:
    """All faults of all roles for all contenders."""
    names = command.chosen(options, EVERYBODY, (OURS,))
    link = Link(rate_bits_per_s=options.rate_mbit * 1e6, rtt_s=options.rtt_ms / 1e3)
    runs: list[Run] = []
    async with Bed.open(Layout.parse(options.layout), link) as bed:
        for name in names:
            async with Nursery.open([name]) as nursery:
                session = Session(bed, nursery, name, options, folder)
                for role in options.roles.split(","):
                    runs += await session.runs_of(role, options.faults.split(","))
    return runs


def main() -> None:
    """Run, print tables, write one JSON and one plot."""
    options = parse()
    command.require(kernel.require_namespaces)
    names = command.chosen(options, EVERYBODY, (OURS,))
    cases = [(f, r) for r in options.roles.split(",") for f in options.faults.split(",")]
    runs = command.run(lambda folder: everything(options, folder))
    goals = goals_of(runs, cases)
    settings = {
        "layout": options.layout,
        "size_mib": options.size_mib,
        "rate_mbit": options.rate_mbit,
        "rtt_ms": options.rtt_ms,
        "lost_at_share_of_a_round": options.at,
        "slowness": faults.SLOWNESS,
        "repeats": options.repeats,
    }
    path = results.write(
        "deaths",
        QUESTION,
        runs,
        goals,
        settings=settings,
        is_smoke=options.smoke,
        out=options.out,
    )
    groups = [
        Bars(name, {case_of(f, r): extra(runs, case_of(f, r), name) for f, r in cases})
        for name in names
    ]
    results.plot(path.with_suffix(".png"), QUESTION, "seconds longer than undisturbed", groups)
    results.show(table_of(runs, cases, names), results.goals_table(goals))


if __name__ == "__main__":
    main()
