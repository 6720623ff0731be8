"""Does a peer's memory stay where it is through half an hour of rounds, deaths and returns?

    python -m experiments.soak                  two swarms for 30 minutes, then copies
    python -m experiments.soak --minutes 3      sooner, to try something
    python -m experiments.soak --only copies    these alone
    python -m experiments.soak --only averagers the ones of averagers, without those of whole peers
    python -m experiments.soak --smoke          in a minute, whether it works

One swarm averages in fp32, one in int8 with error feedback, side by side, of six and of four real
peers (daemon, records, replica, rounds, TLS and shared memory). They play a round every few
seconds. Each minute one of those who come and go (two, and one) is killed or leaves, and comes back
20 s later. Judged are those who stay.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from experiments.soak import copies, rise
from experiments.soak.swarm import Peer, Settings, Swarm
from experiments.soak.watch import MEASURES, deviation, growth, windows
from experiments.testbed import command, results
from experiments.testbed.results import Goal
from peers.processes import Family

QUESTION: Final = "Does a peer's memory stay where it is while rounds go on and others come and go?"
COPIES_QUESTION: Final = "How many copies of its payload does a peer hold at the peak of a round?"
RISE_QUESTION: Final = "By how much does a peer's memory rise from round to round?"
MIB: Final = 1 << 20
MAX_DEVIATION: Final = 0.05
MAX_COPIES: Final = 2.0
MAX_RISE_KB: Final = 10.0  # of 300 MB: 5 % after 1,500 rounds
SPARE: Final = 1.0  # threads and descriptors by which medians may differ: others come and go
COLOURS: Final = ("#1f6f8b", "#e6a23c", "#6aa84f", "#8e7cc3", "#99a8b2", "#c9b8a8")

console = Console(stderr=True)


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--codecs", default="fp32,int8", help="a swarm each, by comma")
    parser.add_argument("--size-mib", type=float, default=16, help="of the payload in fp32")
    parser.add_argument("--period", type=float, default=8, help="seconds from round to round")
    parser.add_argument("--warm-up", type=int, default=5, help="the minute whose level counts")
    parser.add_argument("--only", choices=("soak", "copies", "averagers", "rise"), default="")
    parser.add_argument("--copies-mib", type=float, default=64)
    parser.add_argument("--rise-s", type=float, default=200, help="seconds of quick rounds")
    parser.add_argument("--smoke", action="store_true", help="whether it works; no figures")
    parser.add_argument("--out", type=Path, help="the JSON (default in experiments/results)")
    options = parser.parse_args()
    if options.smoke:
        options.minutes, options.codecs, options.warm_up = 0.4, "fp32", 0
        options.size_mib, options.copies_mib, options.period = 1.0, 1.0, 1.0
    return options


def settings_of(codec: Any, options: argparse.Namespace) -> Settings:
    """How one swarm is soaked."""
    settings = Settings(codec=codec, size_mib=options.size_mib, period_s=options.period)
    if options.smoke:
        few = replace(settings, num_staying=1, num_leaving=1, shm="none")
        return replace(few, churn_s=8.0, away_s=2.0, sample_s=0.7)
    return settings if codec == "fp32" else replace(settings, num_staying=3, num_leaving=1)


async def soak(settings: Settings, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One swarm from its start to its end; what was seen of it."""
    async with Family(folder).keep() as family, AsyncExitStack() as stack:
        swarm = Swarm(family, folder / settings.codec, settings)
        await swarm.start(stack)
        console.print(f"{settings.codec}: all peers are up")
        await swarm.submit()
        console.print(f"{settings.codec}: all are in rounds; {options.minutes:g} minutes from here")
        first_round, began = await swarm.num_rounds(), time.monotonic()
        try:
            await swarm.soak(60 * options.minutes)
        finally:
            seen = told_of(swarm, options)
        seen["num_rounds"] = await swarm.num_rounds() - first_round
        seen["seconds"] = round(time.monotonic() - began, 1)
        return seen


def told_of(swarm: Swarm, options: argparse.Namespace) -> dict[str, Any]:
    """What the result says of a swarm."""
    window_s = 5.0 if options.smoke else 60.0
    staying = swarm.staying()
    return {
        "codec": swarm.settings.codec,
        "settings": asdict(swarm.settings),
        "events": swarm.told_events(),
        "cores_of_a_peer": round(statistics.mean(map(cores_of, staying)), 3),
        "cores_of_all": round(sum(map(cores_of, swarm.peers)), 3),
        "peers": [told_of_peer(peer, swarm, options, window_s) for peer in swarm.peers],
    }


def cores_of(peer: Peer) -> float:
    """Processor time a second, of a peer and its daemon, with its starts again."""
    if len(peer.samples) < 2:
        return 0.0
    used = 0.0
    for before, after in itertools.pairwise(peer.samples):
        more = after.cpu_s - before.cpu_s
        used += more if more >= 0 else after.cpu_s  # another process, from its beginning on
    return used / (peer.samples[-1].at_s - peer.samples[0].at_s)


def told_of_peer(
    peer: Peer, swarm: Swarm, options: argparse.Namespace, window_s: float
) -> dict[str, Any]:
    """Minutes of every measure, and for one that stayed what became of it."""
    found = {measure: windows(peer.samples, measure, window_s) for measure in MEASURES}
    told: dict[str, Any] = {
        "peer": peer.number,
        "is_staying": peer in swarm.staying(),
        "uses_shm": swarm.settings.uses_shm(peer.number),
        "paths": peer.told.get("paths", {}),
        "num_samples": len(peer.samples),
        "windows": {
            measure: [[w.minute, round(w.median), round(w.least), round(w.largest)] for w in each]
            for measure, each in found.items()
        },
    }
    if told["is_staying"]:
        told |= {
            f"{measure}_deviation": deviation(found[measure], options.warm_up)
            for measure in MEASURES
            if measure.endswith("bytes")
        }
        told |= {
            f"{measure}_growth": growth(found[measure], options.warm_up)
            for measure in MEASURES
            if measure.startswith("num")
        }
    told["trace"] = [[round(s.at_s, 1), round(s.rss_bytes / MIB, 1)] for s in peer.samples]
    return told


def worst(swarm: dict[str, Any], name: str) -> float | None:
    """The largest of a figure among those who stayed; None where any lacks it."""
    values = [peer.get(name) for peer in swarm["peers"] if peer["is_staying"]]
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def soak_goals(swarms: list[dict[str, Any]]) -> list[Goal]:
    """What was promised of memory over time."""
    goals = []
    for swarm in swarms:
        codec = swarm["codec"]
        off = worst(swarm, "rss_bytes_deviation")
        goals += [
            Goal(f"{codec}: RSS off its level after warm-up, share", off, MAX_DEVIATION),
            Goal(f"{codec}: threads, growth", worst(swarm, "num_threads_growth"), SPARE),
            Goal(f"{codec}: descriptors, growth", worst(swarm, "num_descriptors_growth"), SPARE),
            Goal(f"{codec}: tasks, growth", worst(swarm, "num_tasks_growth"), SPARE),
        ]
    return goals


def copies_goals(found: list[dict[str, Any]]) -> list[Goal]:
    """What was promised of copies."""
    return [
        Goal(
            f"{each['variant']}, {each['num_peers']} peers: copies beside contribution and mean",
            max(*each["first_round"], *each["later_rounds"]),
            MAX_COPIES,
        )
        for each in found
    ]


def soak_table(swarm: dict[str, Any]) -> Table:
    """What a person reads of one swarm."""
    cores = f"{swarm['cores_of_a_peer']:.3f} core a peer, {swarm['cores_of_all']:.2f} in all"
    table = Table(title=f"{swarm['codec']}: {swarm['num_rounds']} rounds, {cores}")
    for column in ("peer", "RSS, MiB", "off by", "peaks off by"):
        table.add_column(column, justify="right")
    for column in ("daemon, MiB", "off by", "threads", "descriptors", "tasks"):
        table.add_column(column, justify="right")
    for peer in swarm["peers"]:
        if peer["is_staying"]:
            table.add_row(*row_of(peer))
    return table


def copies_table(found: dict[str, Any]) -> Table:
    """What a person reads of copies: of any peer, the most."""
    table = Table(title=f"memory in copies of {found['averagers'][0]['size_mib']:g} MiB, at most")
    for column in ("", "first round", "later rounds", "between rounds"):
        table.add_column(column, justify="right")
    for each in found["averagers"]:
        figures = (each["first_round"], each["later_rounds"], each["between_rounds"])
        label = f"{each['variant']}, {each['num_peers']} peers, beside contribution and mean"
        table.add_row(label, *(f"{max(values):.2f}" for values in figures))
    for each in found["whole_peers"]:
        label = f"{each['codec']}, whole peer, all in all"
        table.add_row(label, "", f"{max(each['peak']):.2f}", "")
    return table


def row_of(peer: dict[str, Any]) -> list[str]:
    """One peer that stayed."""

    def last(measure: str) -> float:
        return float(peer["windows"][measure][-1][1])

    def share(measure: str) -> str:
        value = peer[f"{measure}_deviation"]
        return "-" if value is None else f"{value:.1%}"

    def count(measure: str) -> str:
        value = peer[f"{measure}_growth"]
        return f"{last(measure):.0f}" + ("" if value is None else f" ({value:+.0f})")

    return [
        f"{peer['peer']} {'shm' if peer['uses_shm'] else 'TLS'}",
        f"{last('rss_bytes') / MIB:.0f}",
        *(share(measure) for measure in ("rss_bytes", "peak_rss_bytes")),
        f"{last('daemon_rss_bytes') / MIB:.0f}",
        share("daemon_rss_bytes"),
        *(count(measure) for measure in ("num_threads", "num_descriptors", "num_tasks")),
    ]


def plot(swarms: list[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """RSS over time, a panel for each swarm; deaths, goodbyes and returns are marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(swarms), 1, figsize=(11, 0.6 + 3.8 * len(swarms)), sharex=True, squeeze=False
    )
    for panel, swarm in zip(axes[:, 0], swarms, strict=True):
        draw(panel, swarm, options.warm_up)
    axes[-1, 0].set_xlabel("minutes")
    figure.suptitle(QUESTION, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw(panel: Any, swarm: dict[str, Any], warm_up: int) -> None:
    """One swarm's panel."""
    for peer in swarm["peers"]:
        colour = COLOURS[peer["peer"] % len(COLOURS)]
        kind = "shm + TLS" if peer["uses_shm"] else "TLS"
        minutes = [at_s / 60 for at_s, _ in peer["trace"]]
        rss = [mib for _, mib in peer["trace"]]
        if not peer["is_staying"]:
            panel.plot(
                minutes, rss, ".", markersize=1.2, color=colour, label=f"comes and goes, {kind}"
            )
            continue
        panel.plot(minutes, rss, linewidth=0.4, alpha=0.35, color=colour)
        found = peer["windows"]["rss_bytes"]
        steps = [(minute + 0.5, median / MIB) for minute, median, _, _ in found]
        panel.plot(*zip(*steps, strict=True), linewidth=1.8, color=colour, label=f"stays, {kind}")
        level = next((median / MIB for minute, median, _, _ in found if minute == warm_up), None)
        if level is not None and peer["peer"] == 0:
            bounds = (level * (1 - MAX_DEVIATION), level * (1 + MAX_DEVIATION))
            panel.axhspan(
                *bounds, alpha=0.12, color=colour, label="5 % around the first one's level"
            )
    marks = {"killed": ("x", "#c0504d"), "left": ("v", "#8a6d3b"), "came back": ("^", "#3c763d")}
    bottom = panel.get_ylim()[0]
    for how, (marker, colour) in marks.items():
        at = [event["at_s"] / 60 for event in swarm["events"] if event["how"] == how]
        panel.plot(at, [bottom] * len(at), marker, color=colour, label=how, clip_on=False)
    title = f"{swarm['codec']}, {swarm['settings']['size_mib']:g} MiB, {swarm['num_rounds']} rounds"
    panel.set(ylabel="resident MiB", title=f"{title} (thick: medians of minutes)")
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


async def soak_all(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The swarms, side by side."""
    runs = [soak(settings_of(codec, options), options, folder) for codec in codecs_of(options)]
    return await asyncio.gather(*runs)


async def count_copies(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Averagers alone, then whole peers."""
    averagers, whole_peers = [], []
    size_mib = options.copies_mib
    for variant, num_peers in (("tls", 2),) if options.smoke else copies.CASES:
        console.print(f"copies: {variant}, {num_peers} peers")
        averagers.append(await copies.of_the_averager(variant, num_peers, size_mib, folder))
    for codec in () if options.smoke or options.only == "averagers" else codecs_of(options):
        console.print(f"copies: whole peers, {codec}")
        settings = replace(settings_of(codec, options), size_mib=size_mib, num_leaving=0)
        whole_peers.append(await copies.of_whole_peers(settings, folder))
    return {"averagers": averagers, "whole_peers": whole_peers}


def write_rise(options: argparse.Namespace) -> None:
    """Quick rounds, and by how much memory rises in them."""
    found = command.run(lambda folder: rise.rise(options.rise_s, folder))
    judged = found["bytes_a_round"][1:]
    goals = [Goal("fp32: rise a round, KB, most", max(judged) / 1000, MAX_RISE_KB)]
    results.write(
        "soak",
        RISE_QUESTION,
        (),
        goals,
        settings={"seconds": options.rise_s, "looks": "[rounds, bytes of each peer]"},
        is_smoke=options.smoke,
        out=results.beside(options.out, "soak", "rise", is_smoke=options.smoke),
        more=found,
    )
    console.print(f"{found['num_rounds']} rounds, bytes a round: {found['bytes_a_round']}")
    results.show(results.goals_table(goals))


def codecs_of(options: argparse.Namespace) -> list[Any]:
    """Those that the command names."""
    return list(options.codecs.split(","))


def main() -> None:
    """Run, print tables, write a JSON for either question and one plot."""
    options = parse()
    if options.only == "rise":
        write_rise(options)
    if options.only not in ("copies", "averagers", "rise"):
        swarms = command.run(lambda folder: soak_all(options, folder))
        path = results.write(
            "soak",
            QUESTION,
            (),
            soak_goals(swarms),
            settings={
                "minutes": options.minutes,
                "size_mib": options.size_mib,
                "period_s": options.period,
                "warm_up_minute": options.warm_up,
                "windows": "[minute, median, least, largest]",
                "trace": "[seconds, resident MiB]",
            },
            is_smoke=options.smoke,
            out=options.out,
            more={"swarms": swarms},
        )
        plot(swarms, options, path.with_suffix(".png"))
        results.show(*map(soak_table, swarms), results.goals_table(soak_goals(swarms)))
    if options.only not in ("soak", "rise"):
        found = command.run(lambda folder: count_copies(options, folder))
        goals = copies_goals(found["averagers"])
        results.write(
            "soak",
            COPIES_QUESTION,
            (),
            goals,
            settings={"size_mib": options.copies_mib, "num_rounds": copies.NUM_ROUNDS},
            is_smoke=options.smoke,
            out=results.beside(options.out, "soak", "copies", is_smoke=options.smoke),
            more=found,
        )
        results.show(copies_table(found), results.goals_table(goals))


if __name__ == "__main__":
    main()
