"""How fast is each codec on one core, and how many bytes does the sparse one send?

The vectors are pseudo-gradients plus feedback of a small GPT that was trained for a few rounds.
The sparse codec and SparseLoCo's published one (12 bits a place) train from the same seeds, beside
fp32, so that the loss says whether fewer bytes cost anything.

    python -m experiments.codecs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.codecs import published, rates, swarm
from zoonet.codecs import NAMES, codec, encode_with_feedback
from zoonet.exact import Vector

GOAL_BYTES: Final = 0.00062  # up, per parameter and inner step
PUBLISHED_BYTES: Final = 0.00091
DECAY: Final = 0.95
RESULT: Final = Path(__file__).parent.parent / "results" / "codecs.json"
FIRST_CALL: Final = """
import time
from zoonet.codecs import codec
started = time.perf_counter()
codec("{name}").prepare()
print(time.perf_counter() - started)
"""

console = Console(stderr=True)


class Sparse:
    """topk2 over a whole vector, chunk by chunk, with error feedback. Counts its bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0.0
        self.num_values = 0
        self.kept: list[float] = []

    def __call__(self, delta_P: Vector, feedback_P: Vector) -> Vector:
        """Return what is sent; update the feedback."""
        wanted_P = delta_P + feedback_P
        sent_P = np.empty_like(delta_P)
        one = codec("topk2")
        room = memoryview(bytearray(one.max_bytes(rates.CHUNK_VALUES)))
        for start in range(0, delta_P.size, rates.CHUNK_VALUES):
            chunk = slice(start, start + rates.CHUNK_VALUES)
            num_bytes = encode_with_feedback(
                one, delta_P[chunk], feedback_P[chunk], room, decay=DECAY
            )
            one.decode(room[:num_bytes], sent_P[chunk])
            self.num_bytes += num_bytes
        self.num_values += delta_P.size
        self.kept.append(kept_energy(wanted_P, sent_P))
        return sent_P


class Published(Sparse):
    """The same with SparseLoCo's published code."""

    def __call__(self, delta_P: Vector, feedback_P: Vector) -> Vector:
        """Return what is sent; update the feedback."""
        wanted_P = delta_P + feedback_P
        sent_P, num_bytes = published.quantised(wanted_P)
        np.multiply(wanted_P - sent_P, np.float32(DECAY), out=feedback_P)
        self.num_bytes += num_bytes
        self.num_values += delta_P.size
        self.kept.append(kept_energy(wanted_P, sent_P))
        return sent_P


def kept_energy(wanted_P: Vector, sent_P: Vector) -> float:
    """Share of the vector's squared length that the error does not take."""
    lost = np.square(wanted_P - sent_P, dtype=np.float64).sum()
    return 1.0 - float(lost / np.square(wanted_P, dtype=np.float64).sum())


def compare_bytes(recipe: swarm.Recipe, seeds: int) -> tuple[dict[str, Any], Vector]:
    """Train with each sparse code and with fp32; return the figures and a vector to encode."""
    runs: list[dict[str, Any]] = []
    vector_P = np.zeros(1, np.float32)
    for seed in range(1, seeds + 1):
        ours, theirs = Sparse(), Published()
        loss, vector_P = swarm.train(recipe, ours, seed)
        theirs_loss, _ = swarm.train(recipe, theirs, seed)
        dense_loss, _ = swarm.train(recipe, lambda delta_P, _: delta_P, seed)
        run = {
            "seed": seed,
            "bytes_per_parameter_step": per_step(ours, recipe),
            "sparseloco_bytes_per_parameter_step": per_step(theirs, recipe),
            "kept_energy": statistics.mean(ours.kept),
            "sparseloco_kept_energy": statistics.mean(theirs.kept),
            "loss": loss,
            "sparseloco_loss": theirs_loss,
            "fp32_loss": dense_loss,
        }
        console.print(run)
        runs.append(run)
    bytes_ = statistics.mean(run["bytes_per_parameter_step"] for run in runs)
    differences = [run["loss"] - run["sparseloco_loss"] for run in runs]
    return {
        "bytes_per_parameter_step": bytes_,
        "goal": GOAL_BYTES,
        "sparseloco_as_published": PUBLISHED_BYTES,
        "loss_minus_sparseloco": statistics.mean(differences),
        "is_met": bytes_ <= GOAL_BYTES,
        "runs": runs,
    }, vector_P


def per_step(sparse: Sparse, recipe: swarm.Recipe) -> float:
    """Bytes up per parameter and inner step."""
    return sparse.num_bytes / sparse.num_values / recipe.inner_steps


def first_calls() -> dict[str, dict[str, float]]:
    """Seconds that `prepare` takes in a new process, with an empty cache and with a full one."""
    found: dict[str, dict[str, float]] = {}
    for name in ("int8", "e3m0", "topk2"):
        with tempfile.TemporaryDirectory(prefix="zoonet-codecs-") as folder:
            environment = os.environ | {"NUMBA_CACHE_DIR": folder}
            program = FIRST_CALL.format(name=name)
            times = [
                float(
                    subprocess.run(
                        [sys.executable, "-c", program],
                        env=environment,
                        capture_output=True,
                        text=True,
                        check=True,
                    ).stdout
                )
                for _ in range(2)
            ]
        found[name] = {"compiling_s": times[0], "cached_s": times[1]}
    return found


def table_of(result: dict[str, Any]) -> Table:
    """What a person reads."""
    speed = result["rates"]
    copy = speed["memcpy_gb_per_s"]["median"]
    table = Table(title=f"one core; GB/s of fp32 memory; memcpy {copy:.1f}")
    what = ("encode", "decode", "accumulate", "encode_with_feedback")
    for column in ("codec", "bytes a value", *what[:3], "with feedback", "fills, Gbit/s"):
        table.add_column(column, justify="right")
    for name, one in speed["codecs"].items():
        table.add_row(
            name,
            f"{one['bytes_per_value']:.4f}",
            *(f"{one[f'{name_}_gb_per_s']['median']:.2f}" for name_ in what),
            f"{one['saturates_gbit_per_s']:.2f}",
        )
    return table


def run(
    recipe: swarm.Recipe, *, seeds: int, num_values: int, repeats: int, is_compiling_timed: bool
) -> dict[str, Any]:
    """Everything; the result as it is written down."""
    bytes_, vector_P = compare_bytes(recipe, seeds)
    values_N = np.resize(vector_P, num_values)
    return {
        "question": "Is each codec faster than the link it is meant for, and how small is topk2?",
        "rates": rates.measure(list(NAMES), values_N, repeats),
        "first_call": first_calls() if is_compiling_timed else {},
        "sparse": bytes_,
        "settings": {
            "recipe": {name: getattr(recipe, name) for name in recipe.__slots__},
            "vector_values": num_values,
            "chunk_values": rates.CHUNK_VALUES,
            "repeats": repeats,
            "decay": DECAY,
            "numba": version("numba"),
        },
        "command": "python -m experiments.codecs",
        "machine": machine.facts(),
    }


def main() -> None:
    """Run, print a table, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.codecs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default 3)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each (default 8)")
    parser.add_argument("--repeats", type=int, default=7, help="timings (default 7)")
    parser.add_argument("--values", type=int, default=1 << 24, help="timed vector (default 2^24)")
    parser.add_argument("--width", type=int, default=128, help="of the model (default 128)")
    parser.add_argument("--no-compiling", action="store_true", help="do not time first calls")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = swarm.Recipe(rounds=options.rounds, width=options.width)
    result = run(
        recipe,
        seeds=options.seeds,
        num_values=options.values,
        repeats=options.repeats,
        is_compiling_timed=not options.no_compiling,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    Console().print(table_of(result))
    sparse = result["sparse"]
    print(json.dumps({name: sparse[name] for name in ("bytes_per_parameter_step", "is_met")}))


if __name__ == "__main__":
    main()
