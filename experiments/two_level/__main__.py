"""Do peers that average within their site diverge like one?

Replicas of a small GPT in one process, with the production optimizer: 8 in 2 sites or 24 in 4,
whose members average their parameters every few steps between two rounds. Beside them the sites as
single peers with as large a batch together, and one peer alone without an outer optimizer, which is
ordinary training. All see as many tokens. What a loss is worth is told in tokens: how many ordinary
training would have needed for it, as a share of those that were used.

    python -m experiments.two_level --text tinyshakespeare.txt
    python -m experiments.two_level --smoke

Runs that the result holds already are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.two_level.training import Setting, run

RESULT: Final = Path(__file__).parent.parent / "results" / "two-level.json"
LEARNING_RATES: Final = (2e-3, 4e-3, 8e-3)
SHARES: Final = (0.6, 0.8, 1.0)  # of the steps, of ordinary training
ORDINARY: Final[dict[str, Any]] = {"outer_lr": 1.0, "outer_momentum": 0.0}

console = Console(stderr=True)


def settings_of(text: str, casts: Sequence[tuple[int, ...]], seeds: int) -> list[Setting]:
    """Everything that is compared, for each cast (the sizes of its sites)."""
    found = []
    for sites in casts:
        num_peers = sum(sites)
        for lr in LEARNING_RATES:
            common: dict[str, Any] = {"text": text, "inner_lr": lr}
            found += [Setting(**common, site_sizes=sites, site_steps=k) for k in (0, 1, 5)]
            alone = (1,) * len(sites)
            found.append(
                Setting(**common, site_sizes=alone, batch_size=3 * num_peers // len(sites))
            )
            for share in SHARES:
                one = Setting(**common, **ORDINARY, site_sizes=(1,), batch_size=3 * num_peers)
                found.append(replace(one, steps=round(share * one.steps / 25) * 25))
    return [replace(one, seed=seed) for one in found for seed in range(1, seeds + 1)]


def is_ordinary(one: dict[str, Any]) -> bool:
    """A run of ordinary training."""
    return bool(sum(one["site_sizes"]) == 1 and one["outer_momentum"] == 0)


def label_of(one: dict[str, Any]) -> str:
    """How tables call a run."""
    sizes = one["site_sizes"]
    if is_ordinary(one):
        return f"1 peer, batch {one['batch_size']}, {one['steps']} steps, ordinary"
    peers = f"{sum(sizes)} peers in {len(sizes)} sites" if max(sizes) > 1 else f"{len(sizes)} peers"
    every = one["site_steps"]
    means = f", site means every {every}" if every else ""
    return f"{peers}, batch {one['batch_size']}{means}"


def best(runs: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """For each label the loss (the mean of its seeds) at its best learning rate; and seeds."""
    by_lr: dict[str, dict[float, list[float]]] = {}
    for one in runs:
        losses = by_lr.setdefault(label_of(one), {}).setdefault(one["inner_lr"], [])
        losses.append(one["loss"])
    found = {}
    for label, losses_of in by_lr.items():
        lr = min(losses_of, key=lambda lr: statistics.mean(losses_of[lr]))
        found[label] = (statistics.mean(losses_of[lr]), lr, len(losses_of[lr]))
    return found


def efficiency(loss: float, ordinary: Sequence[tuple[int, float]], steps: int) -> float | None:
    """Steps after which ordinary training comes to that loss, as a share of `steps`.

    `ordinary` are numbers of steps and losses. None outside of what was run.
    """
    points = sorted((at_loss, num_steps) for num_steps, at_loss in ordinary)
    if not points or not points[0][0] <= loss <= points[-1][0]:
        return None
    losses, numbers = zip(*points, strict=True)
    return float(np.interp(loss, losses, numbers)) / steps


def table_of(runs: Sequence[dict[str, Any]]) -> Table:
    """What a person reads."""
    table = Table("who", "best inner lr", "held-out loss", "seeds", "share of tokens it is worth")
    ordinary: dict[int, list[tuple[int, float]]] = {}
    for batch in {one["batch_size"] for one in runs if is_ordinary(one)}:
        of_batch = [one for one in runs if is_ordinary(one) and one["batch_size"] == batch]
        for label, (loss, _, _) in best(of_batch).items():
            num_steps = next(one["steps"] for one in of_batch if label_of(one) == label)
            ordinary.setdefault(batch, []).append((num_steps, loss))
    known = {label_of(one): one for one in runs}
    for label, (loss, lr, seeds) in best(runs).items():
        one = known[label]
        whole = one["batch_size"] * sum(one["site_sizes"])
        worth = efficiency(loss, ordinary.get(whole, ()), max(o["steps"] for o in runs))
        share = "" if worth is None else f"{worth:.0%}"
        table.add_row(label, f"{lr:g}", f"{loss:.4f}", str(seeds), share)
    return table


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over the learning rate, a line for each label."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    lines: dict[str, dict[float, list[float]]] = {}
    for one in runs:
        lines.setdefault(label_of(one), {}).setdefault(one["inner_lr"], []).append(one["loss"])
    for label, points in lines.items():
        means = sorted((lr, statistics.mean(losses)) for lr, losses in points.items())
        axes.plot(*zip(*means, strict=True), "o-", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("inner learning rate")
    axes.set_ylabel("held-out loss, nats a token")
    axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def cast(text: str) -> tuple[int, ...]:
    """Read "4+4": the sizes of sites."""
    try:
        sizes = tuple(int(size) for size in text.split("+"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not sizes of sites, as 4+4") from error
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a site without anybody")
    return sizes


def known_in(path: Path) -> list[dict[str, Any]]:
    """The runs that a result holds."""
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return runs


def same(setting: Setting, one: dict[str, Any]) -> bool:
    """Whether a run was of that setting."""
    ours = asdict(setting) | {"text": Path(setting.text).name}
    return all(list_of(one[f.name]) == list_of(ours[f.name]) for f in fields(Setting))


def list_of(value: Any) -> Any:
    """JSON knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def write(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Write what there is so far."""
    result = {
        "question": "Do peers that average within their site diverge like one?",
        "runs": runs,
        "machine": machine.facts(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    plot(runs, path.with_suffix(".png"))


def main() -> None:
    """Run what is missing, print a table, write one JSON and one plot."""
    parser = argparse.ArgumentParser(prog="python -m experiments.two_level", description=__doc__)
    parser.add_argument("--text", type=Path, help="what to train on")
    parser.add_argument("--casts", type=cast, nargs="+", default=[(4, 4), (6, 6, 6, 6)])
    parser.add_argument("--seeds", type=int, default=1, help="of each (default 1)")
    parser.add_argument("--smoke", action="store_true", help="tiny, in half a minute")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.text is None and not options.smoke:
        parser.error("--text FILE says what to train on")
    settings = settings_of(str(options.text or "stdlib"), options.casts, options.seeds)
    if options.smoke:
        options.out = Path(tempfile.mkdtemp(prefix="zn-")) / "two-level.json"
        small: dict[str, Any] = {
            "steps": 50,
            "width": 16,
            "max_bytes": 100_000,
            "site_sizes": (2, 2),
        }
        settings = [replace(one, **small) for one in settings[:3]]
    runs = known_in(options.out)
    for setting in settings:
        if any(same(setting, one) for one in runs):
            continue
        _, loss, seconds = run(setting)
        text = {"text": Path(setting.text).name}
        runs.append({**asdict(setting), **text, "loss": loss, "seconds": round(seconds, 1)})
        console.print(
            f"{label_of(runs[-1])}, lr {setting.inner_lr:g}: {loss:.4f} ({seconds:.0f} s)"
        )
        write(runs, options.out)
    Console().print(table_of(runs))
    print(json.dumps({"runs": len(runs), "out": str(options.out)}))


if __name__ == "__main__":
    main()
