"""What do steps cost that are taken before the mean of the last round is known?

Peers that train ahead while a round is averaged (docs/training.md) take the first steps of each
round from where they think that the outer step will lead. This plays the production optimizer of
several peers in one process, with means that come so many steps late, and compares the held-out
loss at equal tokens: whether fewer steps a round and a late mean beat more steps and none.

    python -m experiments.staleness --text tinyshakespeare.txt
    python -m experiments.staleness --smoke
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import matplotlib
from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.staleness.training import Setting, run

RESULT: Final = Path(__file__).parent.parent / "results" / "staleness.json"
PAIRS: Final = ((25, 0), (25, 2), (25, 8), (12, 0), (12, 2), (12, 6), (8, 0), (8, 7))

console = Console(stderr=True)


def run_all(settings: list[Setting]) -> list[dict[str, Any]]:
    """Train each setting, one on each core at a time; tell of each as it ends."""
    found = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        for done in as_completed([pool.submit(run, setting) for setting in settings]):
            setting, loss, seconds = done.result()
            console.print(
                f"{setting.inner_steps:3} steps, mean {setting.delay:2} late, "
                f"lr {setting.outer_lr}, momentum {setting.outer_momentum}, seed {setting.seed}: "
                f"loss {loss:.4f} ({seconds:.0f} s)"
            )
            found.append({**asdict(setting), "loss": loss, "seconds": round(seconds, 1)})
    return sorted(found, key=lambda one: (-one["inner_steps"], one["delay"], one["seed"]))


def means(runs: list[dict[str, Any]]) -> dict[tuple[int, int, float, float], list[float]]:
    """Losses of all seeds by inner steps, delay, outer learning rate and momentum."""
    by_setting: dict[tuple[int, int, float, float], list[float]] = {}
    for one in runs:
        key = (one["inner_steps"], one["delay"], one["outer_lr"], one["outer_momentum"])
        by_setting.setdefault(key, []).append(one["loss"])
    return by_setting


def table_of(runs: list[dict[str, Any]]) -> Table:
    """What a person reads."""
    table = Table(title="held-out loss at equal tokens")
    for column in ("steps a round", "of them too early", "outer lr", "momentum", "loss", "seeds"):
        table.add_column(column, justify="right")
    for (steps, delay, lr, momentum), losses in means(runs).items():
        spread = f"{statistics.mean(losses):.4f}"
        table.add_row(str(steps), str(delay), f"{lr:g}", f"{momentum:g}", spread, str(len(losses)))
    return table


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Loss against the delay, a line for each number of steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    lines: dict[tuple[int, float, float], list[tuple[int, float]]] = {}
    for (steps, delay, lr, momentum), losses in means(runs).items():
        lines.setdefault((steps, lr, momentum), []).append((delay, statistics.mean(losses)))
    for (steps, lr, momentum), points in lines.items():
        label = f"{steps} steps a round, lr {lr:g}, momentum {momentum:g}"
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=label)
    axes.set_xlabel("steps taken before the mean of the last round is known")
    axes.set_ylabel("held-out loss, nats a token")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def pair(text: str) -> tuple[int, int, float, float]:
    """Read "25:8" or "25:8:0.5:0.8": steps, delay, and perhaps outer lr and momentum."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not STEPS:DELAY[:LR[:MOMENTUM]]")
    lr = float(parts[2]) if len(parts) > 2 else 0.7
    return int(parts[0]), int(parts[1]), lr, float(parts[3]) if len(parts) > 3 else 0.9


def main() -> None:
    """Run, print a table, write one JSON and one plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.staleness", description=__doc__)
    parser.add_argument("--text", type=Path, help="what to train on")
    parser.add_argument("--pairs", type=pair, nargs="+", help="such as 25:8 or 25:8:0.5:0.8")
    parser.add_argument("--seeds", type=int, default=1, help="of each (default 1)")
    parser.add_argument("--steps", type=int, default=800, help="of each replica (default 800)")
    parser.add_argument("--smoke", action="store_true", help="tiny, in half a minute")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.text is None and not options.smoke:
        parser.error("--text FILE says what to train on")
    pairs = options.pairs or [(steps, delay, 0.7, 0.9) for steps, delay in PAIRS]
    settings = [
        Setting(
            text=str(options.text or "stdlib"),
            inner_steps=steps,
            delay=delay,
            outer_lr=lr,
            outer_momentum=momentum,
            seed=seed,
            steps=options.steps,
        )
        for steps, delay, lr, momentum in pairs
        for seed in range(1, options.seeds + 1)
    ]
    if options.smoke:
        options.out = Path(tempfile.gettempdir()) / "staleness.json"
        settings = [replace(one, steps=24, width=16, max_bytes=100_000) for one in settings[1:3]]
    runs = run_all(settings)
    for one in runs:
        one["text"] = Path(one["text"]).name
    result = {
        "question": "What do steps cost that are taken before the last mean is known?",
        "runs": runs,
        "machine": machine.facts(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    plot(runs, options.out.with_suffix(".png"))
    Console().print(table_of(runs))
    print(json.dumps({"runs": len(runs)}))


if __name__ == "__main__":
    main()
