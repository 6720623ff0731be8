"""Does a pipeline of real peers survive the loss of a peer, and what does the loss cost?

Four hosts on this machine, a process each, train a model of eight blocks in stages. One after the
other the peers named by `--kill` are killed; those who are left share the blocks and go on from the
last checkpoint. Losses are compared bit for bit with the same training in one process.

    python -m experiments.pipeline
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from experiments import machine
from experiments.pipeline.train import Plan, losses_of_one_process

RESULT: Final = Path(__file__).parent.parent / "results" / "pipeline.json"
LIMIT_S: Final = 240.0


@dataclass(slots=True)
class Story:
    """What the peers have said, and when."""

    losses: dict[int, float] = field(default_factory=dict)
    times: list[tuple[float, str]] = field(default_factory=list)

    def hear(self, now: float, line: str) -> None:
        """A line of a peer; later ones about a step replace earlier ones."""
        self.times.append((now, line))
        if line.startswith("step"):
            _, step, _, loss = line.split()
            self.losses[int(step)] = float.fromhex(loss)


def free_ports(num_ports: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def peers_running(
    num_peers: int, num_steps: int, lines: queue.Queue[tuple[int, str]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """The peers' processes, each of whose lines goes to the queue; none outlives the block."""
    ports = list(map(str, free_ports(num_peers)))
    command = [sys.executable, "-m", "experiments.pipeline.worker"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(num_steps), *ports],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(num_peers)
    ]

    def read(rank: int) -> None:
        for line in processes[rank].stdout or ():
            lines.put((rank, line.strip()))
        lines.put((rank, "ended"))

    for rank in range(num_peers):
        threading.Thread(target=read, args=(rank,), daemon=True).start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(num_peers: int, num_steps: int, kills: dict[int, int]) -> dict[str, Any]:
    """Train, killing peers when steps are done; return what came of it."""
    story, lines = Story(), queue.Queue[tuple[int, str]]()
    killed: list[dict[str, Any]] = []
    due = sorted((step, rank) for rank, step in kills.items())
    with peers_running(num_peers, num_steps, lines) as processes:
        running = set(range(num_peers))
        while running:
            rank, line = lines.get(timeout=LIMIT_S)
            now = time.monotonic()
            if line == "ended":
                running.discard(rank)
                continue
            story.hear(now, line)
            if line.startswith("recovered") and killed and "recovered_s" not in killed[-1]:
                killed[-1]["recovered_s"] = round(now - killed[-1]["at"], 3)
                killed[-1]["to_step"] = int(line.split()[3])
            if due and line.startswith(f"step {due[0][0]} "):
                step, victim = due.pop(0)
                processes[victim].send_signal(signal.SIGKILL)
                killed.append({"rank": victim, "step": step, "at": now})
        codes = [process.wait() for process in processes]
    expected = losses_of_one_process(Plan(num_steps=num_steps))
    stamps = [at for at, line in story.times if line.startswith("step")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return {
        "num_peers": num_peers,
        "num_steps": num_steps,
        "exit_codes": codes,
        "killed": [{name: kill[name] for name in kill if name != "at"} for kill in killed],
        "step_ms": round(1000 * statistics.median(gaps), 2),
        "last_loss": story.losses[num_steps - 1],
        "is_bit_identical": [story.losses.get(s) for s in range(num_steps)] == expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--kill", nargs="*", default=["1@125", "3@275"], metavar="RANK@STEP")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    pairs = [text.split("@") for text in chosen.kill]
    kills = {int(rank): int(step) for rank, step in pairs}
    rows = [
        run(chosen.peers, chosen.steps, {}),
        run(chosen.peers, chosen.steps, kills),
    ]
    Console().print_json(data=rows)
    chosen.out.write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
