"""What do lanes cost, next to bare TLS sockets that do nothing but send and receive?

Two processes on this machine. `sockets` is Python's own blocking TLS with `sendall` and
`recv_into`, one connection, no messages: the floor of `direct`. CPU is of both processes together.

    python -m experiments.lanes
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.lanes.ends import CONTENDERS, Order, Spent, play

RESULT: Final = Path(__file__).parent.parent / "results" / "lanes.json"
SIZES: Final = (32 << 10, 64 << 10, 256 << 10, 1 << 20)


def measure(num_laps: int, total_bytes: int) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Wall and CPU seconds of each contender and size, a lap forth and a lap back."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    processes = []
    for role in ("sender", "receiver"):
        here, there = context.Pipe()
        process = context.Process(target=play, args=(role, there), daemon=True)
        process.start()
        ends.append(here)
        processes.append(process)
    sender, receiver = ends
    about_sender, about_receiver = sender.recv(), receiver.recv()
    sender.send(about_receiver)
    receiver.send(about_sender)
    orders = [Order(name, size, total_bytes) for size in SIZES for name in CONTENDERS]
    spent: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for lap in range(num_laps + 1):
        for order in orders if lap % 2 else reversed(orders):
            one = _run(order, sender, receiver)
            if lap:  # the first is to warm up
                spent[order.contender, order.message_bytes].append(one)
    for end in ends:
        end.send(None)
    for process in processes:
        process.join()
    return spent


def _run(order: Order, sender: Connection, receiver: Connection) -> tuple[float, float]:
    receiver.send(order)
    assert receiver.recv() == "ready"
    sender.send(order)
    received: Spent = receiver.recv()
    sent: Spent = sender.recv()
    return received.wall_s, received.cpu_s + sent.cpu_s


def rows_of(
    spent: dict[tuple[str, int], list[tuple[float, float]]], total_bytes: int
) -> list[dict[str, Any]]:
    """Medians, the least and the largest. Ratios are taken lap by lap."""
    rows = []
    for (contender, size), runs in spent.items():
        floor = [cpu_s for _, cpu_s in spent["sockets", size]]
        ratios = [cpu_s / least for (_, cpu_s), least in zip(runs, floor, strict=True)]
        cpus = [cpu_s / total_bytes * 1e9 for _, cpu_s in runs]
        rates = [total_bytes / wall_s / 1e6 for wall_s, _ in runs]
        rows.append(
            {
                "contender": contender,
                "message_bytes": size,
                "mb_per_s": [round(statistics.median(rates)), round(min(rates)), round(max(rates))],
                "cpu_s_per_gb": [
                    round(number, 3) for number in (statistics.median(cpus), min(cpus), max(cpus))
                ],
                "cpu_to_sockets": round(statistics.median(ratios), 3),
            }
        )
    return sorted(rows, key=lambda row: (row["message_bytes"], row["contender"]))


def table_of(rows: list[dict[str, Any]]) -> Table:
    """For people."""
    table = Table("message", "way", "MB/s", "CPU s/GB", "CPU, sockets = 1", box=None)
    for row in rows:
        table.add_row(
            f"{row['message_bytes'] >> 10} KiB",
            row["contender"],
            str(row["mb_per_s"][0]),
            f"{row['cpu_s_per_gb'][0]:.2f}",
            f"{row['cpu_to_sockets']:.2f}",
        )
    return table


def main() -> None:
    """Run, print a table, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.lanes", description=__doc__)
    parser.add_argument("--laps", type=int, default=6, help="runs of each that count (default 6)")
    parser.add_argument("--mib", type=int, default=512, help="sent in each run (default 512)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = rows_of(measure(options.laps, options.mib << 20), options.mib << 20)
    result = {
        "question": "What do lanes cost next to bare TLS sockets?",
        "command": f"python -m experiments.lanes --laps {options.laps} --mib {options.mib}",
        "laps": options.laps,
        "bytes": options.mib << 20,
        "machine": machine.facts(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
