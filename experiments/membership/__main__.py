"""What does it cost that every peer knows every peer and every job?

    python -m experiments.membership                          1,000 and 10,000 simulated peers
    python -m experiments.membership --real 32 64 100         also real ones (80 MB of RAM each)
    python -m experiments.membership --smoke                  small, in seconds

Simulated peers run the product's own state machine under a virtual clock, with delays, 1 % loss
and a churn of 20 % an hour. Real ones run it over libp2p daemons on loopback, next to hivemind's
DHT of as many nodes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.membership.simulate import Simulation
from experiments.membership.world import World
from zoonet.membership.gossip import GossipConfig

RESULTS: Final = Path(__file__).parent.parent / "results"
GOALS: Final = {1000: (2, 2000.0), 10_000: (3, float("inf"))}  # RTTs at p99, bytes/s a peer
LONG_S: Final = {1000: 1800.0, 10_000: 180.0}  # of virtual time
MIN_FOUND: Final = 0.999

console = Console(stderr=True)


def simulate(num_peers: int, *, duration_s: float, seed: int) -> dict[str, Any]:
    """One simulated swarm, against its goal."""
    world = World(num_peers=num_peers, duration_s=duration_s, seed=seed)
    console.print(f"simulating {num_peers} peers for {duration_s:.0f} s ...")
    figures = Simulation(world).run()
    num_rtts, bytes_per_s = GOALS.get(num_peers, (2, 2000.0))
    figures["is_met"] = (
        figures["rtts_p99"] <= num_rtts
        and figures["bytes_per_s_mean"] <= bytes_per_s
        and figures["found_share"] >= MIN_FOUND
    )
    figures["world"] = asdict(world)
    return figures


def compare(sizes: list[int]) -> dict[str, Any]:
    """Real peers, their simulated twins and hivemind's DHT, of each size."""
    from experiments.membership import overhead, real
    from peers import runtime

    has_own_network = real.own_network()  # may begin this process anew
    settings = GossipConfig()
    console.print("what a call and a connection cost beside the payload ...")
    with tempfile.TemporaryDirectory(prefix="zn-") as folder:
        beside = runtime.run(overhead.measure_overhead(Path(folder)))
    found = []
    for num_peers in sizes:
        console.print(f"{num_peers} real peers ...")
        with tempfile.TemporaryDirectory(prefix="zn-") as folder:
            measured = runtime.run(real.measure(num_peers, Path(folder), settings=settings))
        console.print(f"{num_peers} nodes of hivemind's DHT ...")
        rival = real.measure_hivemind(num_peers)
        found.append(
            {
                "num_peers": num_peers,
                "real": measured,
                "simulated": real.twin_of(num_peers, settings),
                "hivemind": rival,
            }
        )
    return {"has_own_network": has_own_network, "overhead": beside, "sizes": found}


def simulated_table(runs: list[dict[str, Any]]) -> Table:
    """What a person reads of the simulations."""
    table = Table(title="simulated: churn 20 %/h, loss 1 %")
    rows = (
        ("bytes/s a peer, both directions, mean", "bytes_per_s_mean", "{:.0f}"),
        ("    p50", "bytes_per_s_p50", "{:.0f}"),
        ("    p99", "bytes_per_s_p99", "{:.0f}"),
        ("lookups", "num_lookups", "{:.0f}"),
        ("found", "found_share", "{:.4%}"),
        ("    in the own table", "found_locally_share", "{:.4%}"),
        ("round trips p99", "rtts_p99", "{:.0f}"),
        ("    worst", "rtts_max", "{:.0f}"),
        ("time to find p50, ms", "find_ms_p50", "{:.1f}"),
        ("    p99, ms", "find_ms_p99", "{:.1f}"),
        ("a newcomer is complete, p50, ms", "join_ms_p50", "{:.0f}"),
        ("a new job is with all, p50, s", "job_to_all_s_p50", "{:.1f}"),
        ("a dead peer is forgotten, p50, s", "forgotten_s_p50", "{:.0f}"),
        ("dead peers in a table", "stale_share", "{:.3%}"),
        ("signature checks/s a peer", "signature_checks_per_peer_s", "{:.2f}"),
        ("table, kB", "table_bytes", "{:.0f}"),
        ("memory of the simulation, GB", "rss_gb", "{:.2f}"),
        ("wall time, s", "wall_s", "{:.0f}"),
        ("goal met", "is_met", "{}"),
    )
    table.add_column("peers")
    for run in runs:
        table.add_column(str(run["num_peers"]), justify="right")
    for title, name, form in rows:
        scale = 1000 if name == "table_bytes" else 1
        values = (run[name] if scale == 1 else run[name] / scale for run in runs)
        table.add_row(title, *(form.format(value) for value in values))
    return table


def real_table(compared: dict[str, Any]) -> Table:
    """What a person reads of the real peers."""
    table = Table(title="real peers on one machine, and their simulation")
    for column in (
        "peers",
        "payload B/s",
        "simulated",
        "on the wire B/s",
        "idle host B/s",
        "job to all, s",
        "simulated",
        "forgotten, s",
        "simulated",
        "find p50 / p99, ms",
        "hivemind get p50 / p99, ms",
    ):
        table.add_column(column, justify="right")
    for size in compared["sizes"]:
        real, twin, rival = size["real"], size["simulated"], size["hivemind"]
        table.add_row(
            str(size["num_peers"]),
            f"{real['payload_bytes_per_s']:.0f}",
            f"{twin['payload_bytes_per_s']:.0f}",
            f"{real['interface_bytes_per_s']:.0f}",
            f"{real['idle_bytes_per_s']:.0f}",
            f"{real['job_to_all_s_p50']:.1f}",
            f"{twin['job_to_all_s_p50']:.1f}",
            f"{real['forgotten_s_p50']:.0f}",
            f"{twin['forgotten_s_p50']:.0f}",
            f"{real['find_ms_p50']:.2f} / {real['find_ms_p99']:.2f}",
            f"{rival['get_ms_p50']:.1f} / {rival['get_ms_p99']:.1f}",
        )
    return table


def plot(result: dict[str, Any], path: Path) -> None:
    """Bytes per peer by size, and how news spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    runs = result["simulated"]
    sizes = [run["num_peers"] for run in runs]
    left.bar([f"{n:,}" for n in sizes], [run["bytes_per_s_mean"] for run in runs], width=0.5)
    left.axhline(2000, color="tab:red", linestyle="--", label="goal at 1,000 peers")
    left.set(xlabel="simulated peers", ylabel="bytes/s a peer, in and out", title="cost")
    left.legend()
    for run in runs:
        seconds = [int(key) for key in run["spread"]]
        right.plot(
            seconds,
            [100 * share for share in run["spread"].values()],
            marker="o",
            label=f"{run['num_peers']:,} peers",
        )
    right.set(xlabel="seconds after a peer came", ylabel="% of peers that know it")
    right.set(title="news spread", ylim=(0, 102))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Run, print tables, write one JSON and one plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.membership", description=__doc__)
    parser.add_argument("--peers", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--real", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--duration", type=float, default=0.0, help="virtual seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="60 peers for a minute")
    parser.add_argument("--out", type=Path, default=RESULTS / "membership.json")
    options = parser.parse_args()
    sizes = [60] if options.smoke else options.peers
    # First, since it may begin this process anew in a network of its own.
    compared = compare(options.real) if options.real else {}
    runs = []
    for num_peers in sizes:
        duration_s = options.duration or LONG_S.get(num_peers, 600.0)
        if options.smoke:
            duration_s = options.duration or 60.0
        runs.append(simulate(num_peers, duration_s=duration_s, seed=options.seed))
    result = {
        "question": "What does it cost that every peer knows every peer and every job?",
        "simulated": runs,
        "real": compared,
        "machine": machine.facts(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, options.out.with_suffix(".png"))
    Console().print(simulated_table(runs))
    if compared:
        Console().print(real_table(compared))
    print(json.dumps({"is_met": all(run["is_met"] for run in runs)}))


if __name__ == "__main__":
    main()
