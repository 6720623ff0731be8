"""What share of centralised training is the network worth, and how much faster is it than rivals?

Part tokens: contenders train in one process, with the production optimizer, and are compared with
the best-tuned centralised twin by the tokens that it needs for the same loss. Each training is an
entry of the JSON, written at once: a command that is interrupted goes on where it was. Part wall:
with what real peers have been measured to need for a round (experiments.training), E is token
efficiency x utilisation x goodput, and time to the target loss is compared with rivals.

    python -m experiments.efficiency --text tinyshakespeare.txt
    python -m experiments.efficiency --text tinyshakespeare.txt --peers 24
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import machine
from experiments.efficiency import figures, table, wall
from experiments.efficiency.contenders import Contender, Scale, Setting, contenders_of
from experiments.efficiency.tokens import run
from experiments.testbed.results import RESULTS, command_line

NAME: Final = "efficiency"
SMOKE: Final = Scale(steps=50, batch_size=1, num_layers=1, width=16, context=16, max_bytes=60_000)
SMOKE_CONTENDERS: Final = ("twin", "diloco, 2 early", "two levels, every 5", "delayed, batch x1")
CAVEATS: Final = (
    "Learning rates are swept at full length with the first seed; shorter runs and other seeds "
    "use the best of them.",
    "Token efficiency is a small model's, on characters; utilisation was measured with another "
    "model. Neither depends on the other here, but both depend on sizes.",
)


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", type=Path, help="what to train on; not for --report")
    parser.add_argument("--peers", type=int, choices=(8, 24), default=8)
    parser.add_argument("--seeds", type=int, default=3, help="of each (default 3)")
    parser.add_argument("--steps", type=int, default=Scale().steps, help="of each peer")
    parser.add_argument("--contenders", default="", help="only these, by semicolon")
    parser.add_argument("--minutes", type=float, default=0, help="stop then; 0: at the end")
    parser.add_argument("--report", action="store_true", help="train nothing, show what there is")
    parser.add_argument("--measured", type=Path, nargs="*", help="results of experiments.training")
    parser.add_argument("--smoke", action="store_true", help="tiny, in half a minute")
    parser.add_argument("--out", type=Path, help="the JSON (default in experiments/results)")
    options = parser.parse_args()
    if options.text is None and not (options.smoke or options.report):
        parser.error("--text FILE says what to train on")
    if options.smoke:
        options.seeds, options.contenders = 1, ";".join(SMOKE_CONTENDERS)
        folder = Path(tempfile.gettempdir()) / "zoonet-smoke"
    else:
        folder = RESULTS
    options.out = options.out or folder / f"{NAME}-{options.peers}.json"
    if options.measured is None:
        options.measured = sorted(RESULTS.glob("training-utilisation*.json"))
    return options


def chosen(options: argparse.Namespace) -> tuple[Contender, ...]:
    """The contenders that the command names, else all. Exits for an unknown name."""
    everybody = contenders_of(options.peers)
    if not options.contenders:
        return everybody
    names = [name.strip() for name in options.contenders.split(";")]
    if unknown := sorted(set(names) - {contender.name for contender in everybody}):
        known = "; ".join(contender.name for contender in everybody)
        sys.exit(f"nobody here is called {'; '.join(unknown)}; there are {known}")
    return tuple(contender for contender in everybody if contender.name in names)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all entries of a result have in common."""
    scale = SMOKE if options.smoke else Scale(steps=options.steps)
    text = options.text.name if options.text else "stdlib"
    return {"peers": options.peers, "text": text, **asdict(scale)}


def known_in(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries that a result holds. Exits where they are of another scale or text."""
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    if result["settings"] != settings:
        sys.exit(f"{path} holds another experiment, {result['settings']}; name another with --out")
    entries: list[dict[str, Any]] = result["runs"]
    return entries


def step_tokens(settings: dict[str, Any]) -> int:
    """Training tokens of one step of all peers."""
    tokens: int = settings["peers"] * settings["batch_size"] * settings["context"]
    return tokens


def write(
    entries: Sequence[table.Entry],
    options: argparse.Namespace,
    settings: dict[str, Any],
    trained: dict[str, Any],
) -> None:
    """Write what there is so far, and what follows from it; `trained`: where and how it was."""
    lines = wall.lines_of(options.measured)
    result = {
        "question": "What share of centralised training is the network worth?",
        "is_smoke": options.smoke,
        "token_efficiency": [asdict(worth) for worth in table.worths(entries, options.peers)],
        "efficiency": [
            {**asdict(one), "E": one.whole}
            for one in wall.efficiencies(entries, options.peers, lines)
        ],
        "races": [
            {**asdict(one), "times_faster": one.ratio}
            for one in wall.races(entries, options.peers, lines, step_tokens(settings))
        ],
        "caveats": CAVEATS,
        "settings": settings,
        **trained,
        "runs": entries,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    fresh.replace(options.out)


def train_all(options: argparse.Namespace, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train what is missing, one after the other, on one core."""
    entries = known_in(options.out, settings)
    scale = SMOKE if options.smoke else Scale(steps=options.steps)
    contenders, text = chosen(options), str(options.text or "stdlib")
    until = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=1.0)
        while time.monotonic() < until:
            setting = table.missing(entries, contenders, options.peers, options.seeds)
            if setting is None:
                break
            progress.reset(bar, description=f"{len(entries)} done; {told(setting)}")
            entry = run(setting, scale, text, lambda done: progress.update(bar, completed=done))
            entries.append(entry)
            loss = "diverged" if entry["loss"] is None else f"{entry['loss']:.4f}"
            progress.console.print(f"{told(setting)}: {loss} ({entry['seconds']:.0f} s)")
            arguments = [options.text.name if a == text else a for a in sys.argv[1:]]
            trained = {"command": command_line(NAME, arguments), "machine": machine.facts()}
            write(entries, options, settings, trained)
    return entries


def told(setting: Setting) -> str:
    """A training in a few words."""
    length = "" if setting.share == 1 else f", {setting.share:g} of the length"
    return f"{setting.contender}, lr {setting.inner_lr:g}{length}, seed {setting.seed}"


def main() -> None:
    """Train, print tables, write one JSON and one plot."""
    options = parse()
    settings = settings_of(options)
    if options.report:
        if not options.out.exists():
            sys.exit(f"{options.out} is not there; run without --report first")
        result = json.loads(options.out.read_text())
        settings, entries = result["settings"], result["runs"]
        trained = {key: result[key] for key in ("command", "machine")}
        write(entries, options, settings, trained)
    else:
        entries = train_all(options, settings)
    lines = wall.lines_of(options.measured)
    tokens = step_tokens(settings)
    figures.plot(entries, options.peers, lines, tokens, options.out.with_suffix(".png"))
    for one in figures.tables(entries, options.peers, lines, tokens):
        Console().print(one)
    print(json.dumps({"runs": len(entries), "out": str(options.out)}))


if __name__ == "__main__":
    main()
