"""How long does an all-reduce take on one host, next to what its bytes cost at the least?

64 MiB of fp32, 4 and 8 peers, each a process of its own, over loopback. The floor moves the same
bytes through bare TLS sockets, with the additions and one BLAKE3 pass over the payload.

    python -m experiments.allreduce
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from experiments.allreduce.breakdown import breakdown, measure_units
from experiments.allreduce.breakdown import table_of as breakdown_table
from experiments.testbed import command, measuring, results
from experiments.testbed.bed import Loopback
from experiments.testbed.casts import open_cast
from experiments.testbed.measuring import Rules, Run, middle, ratio, spread
from experiments.testbed.results import Bars, Goal

QUESTION: Final = "How long does an all-reduce take on one host, next to its floor and to rivals?"
OURS: Final = ("zoonet-tls", "zoonet-shm", "zoonet-int8")
BARE: Final = ("floor", "gloo")
RIVALS: Final = ("hivemind",)
USUAL: Final = (*OURS, *BARE, *RIVALS)
EVERYBODY: Final = (*USUAL, "hivemind-default")
HOSTED_TOGETHER: Final = (OURS, BARE, RIVALS, ("hivemind-default",))
MIB: Final = 1 << 20


def case_of(num_peers: int) -> str:
    """How a number of peers is called in results."""
    return f"{num_peers} peers"


async def measure_size(
    num_peers: int, names: tuple[str, ...], options: argparse.Namespace, folder: Path
) -> list[Run]:
    """All runs with so many peers. Everyone's processes are up at once, and idle but for one's."""
    folder = folder / str(num_peers)
    folder.mkdir()
    rules = Rules(options.smoke, options.others_cores)
    num_values = int(options.size_mib * MIB) // 4
    async with (
        Loopback.open(num_peers) as bed,
        open_cast(bed, HOSTED_TOGETHER, names, num_values, folder) as troupes,
    ):

        async def measure_one(name: str, lap: int) -> Run:
            return await measuring.measure(
                bed,
                lambda: troupes[name].perform(name),
                rules,
                case=case_of(num_peers),
                contender=name,
                lap=lap,
            )

        return await measuring.by_turns(names, options.repeats, measure_one)


def with_matchmaking(runs: list[Run], case: str) -> float | None:
    """How many times our round goes into hivemind's round and the matchmaking before it."""
    ours = spread(run.seconds for run in measuring.of(runs, case, "zoonet-tls"))
    theirs = spread(run.seconds + run.match_s for run in measuring.of(runs, case, "hivemind"))
    return theirs.median / ours.median if ours and theirs else None


def goals_of(runs: list[Run], sizes: list[int]) -> list[Goal]:
    """What was promised of each size."""
    goals = []
    for case in map(case_of, sizes):
        tls = ratio(runs, case, "zoonet-tls", "floor")
        rival = ratio(runs, case, "hivemind", "zoonet-tls")
        shm = ratio(runs, case, "zoonet-shm", "gloo")
        int8 = ratio(runs, case, "zoonet-int8", "gloo")
        goals += [
            Goal(f"{case}: TLS fp32 / floor", middle(tls), 1.15),
            Goal(f"{case}: hivemind in the round / TLS fp32", middle(rival), 6.0, False),
            Goal(f"{case}: hivemind matched / TLS fp32", with_matchmaking(runs, case), 25.0, False),
            Goal(f"{case}: shared memory fp32 / gloo", middle(shm), 1.0),
            Goal(f"{case}: TLS int8 / gloo fp32", middle(int8), 1.5),
        ]
    ours = [run for run in runs if run.contender in OURS and run.counts]
    largest = max((run.num_digests for run in ours), default=None)
    different = None if largest is None else float(largest)
    return [*goals, Goal("different results of one round, at most", different, 1.0)]


def table_of(runs: list[Run], sizes: list[int], names: tuple[str, ...]) -> Table:
    """What a person reads."""
    table = Table(title="all-reduce over loopback, seconds: median (least - largest)")
    for column in ("contender", *map(case_of, sizes), "before the round", "bytes", "runs"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    last = case_of(sizes[-1])
    for name in names:
        cells = []
        for case in map(case_of, sizes):
            found = spread(run.seconds for run in measuring.of(runs, case, name))
            cells.append(results.seconds_cell(found))
        counted = measuring.of(runs, last, name)
        match = spread(run.match_s for run in counted)
        crossed = spread(run.crossing_bytes / 1e6 for run in counted)
        table.add_row(
            name,
            *cells,
            f"{match.median:.2f} s" if match else "-",
            f"{crossed.median:.0f} MB" if crossed else "-",
            str(sum(run.contender == name and run.counts for run in runs)),
        )
    return table


def breakdown_of(
    runs: list[Run], sizes: list[int], size_mib: float, folder: Path
) -> dict[str, dict[str, float]]:
    """Processor seconds of our rounds over TLS, by part, for each size that has any."""
    units = measure_units(folder, num_mib=max(1, int(size_mib)))
    found = {}
    for num_peers in sizes:
        case = case_of(num_peers)
        used = spread(run.cpu_s for run in measuring.of(runs, case, "zoonet-tls"))
        if used:
            found[case] = breakdown(units, num_peers, size_mib, used.median)
    return found


def settings_of(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """What a repetition needs to know."""
    return {
        "contenders": names,
        "peers": options.peers,
        "size_mib": options.size_mib,
        "repeats": options.repeats,
        "omp_num_threads": 1,
        "tls": "1.3, Python's ssl with its default cipher",
        "hivemind": "group of fixed size, matchmaking 1 s, request 0.5 s, started by a trigger",
        "bytes": "sent over the namespace's loopback, headers included; 0 without root",
    }


def main() -> None:
    """Run, print tables, write one JSON and one plot."""
    parser = command.parser("allreduce", __doc__)
    parser.add_argument("--peers", default="4,8", help="numbers of peers, by comma")
    parser.add_argument("--size-mib", type=float, default=64, help="of the vector (default 64)")
    options = parser.parse_args()
    if options.smoke:
        options.peers, options.size_mib, options.repeats = "3", 1.0, 1
    usual = (*OURS, *BARE) if options.smoke else USUAL  # hivemind takes long to start
    names = command.chosen(options, EVERYBODY, usual)
    sizes = [int(size) for size in options.peers.split(",")]

    async def everything(folder: Path) -> tuple[list[Run], dict[str, dict[str, float]]]:
        runs: list[Run] = []
        for size in sizes:
            runs += await measure_size(size, names, options, folder)
        return runs, breakdown_of(runs, sizes, options.size_mib, folder)

    runs, parts = command.run(everything)
    goals = goals_of(runs, sizes)
    path = results.write(
        "allreduce",
        QUESTION,
        runs,
        goals,
        settings=settings_of(options, names),
        is_smoke=options.smoke,
        out=options.out,
        more={"cpu_s_by_part": parts},
    )
    groups = []
    for case in map(case_of, sizes):
        found = {n: spread(r.seconds for r in measuring.of(runs, case, n)) for n in names}
        groups.append(Bars(case, found))
    title = f"All-reduce of {options.size_mib:g} MiB over loopback"
    results.plot(path.with_suffix(".png"), title, "seconds", groups)
    results.show(table_of(runs, sizes, names), results.goals_table(goals))
    if parts:
        results.show(breakdown_table(parts))


if __name__ == "__main__":
    main()
