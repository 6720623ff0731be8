"""Do four real peers reach the published loss of a well-known recipe on one machine?

nanoGPT's CPU recipe on tiny Shakespeare, trained by four peers in place of one process: 4 layers,
4 heads, width 128, context 64, character tokens, 1,536,000 training tokens in total. The measure is
the outer parameters' loss over every non-overlapping window of the last 10 % of the text;
nanoGPT's own checkpoint scores 1.898 on it.

    python -m experiments.shakespeare --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from experiments import machine
from experiments.shakespeare.evaluate import held_out_loss
from experiments.shakespeare.swarm import NUM_PEERS, peers_on_loopback, shares
from peers import runtime
from zoonet.client import Network
from zoonet.config import ComputeJob

TRAINING: Final = {
    "tokens": 1_536_000,
    "batch_size": 3,
    "inner_steps": 25,
    "inner_lr": 2e-3,
    "min_lr_fraction": 0.1,
    "warmup_fraction": 0.05,
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
    "grad_clip": 1.0,
    "outer_lr": 0.7,
    "outer_momentum": 0.9,
    "eval_interval": 5,
}
MODEL: Final = {"kind": "gpt", "num_layers": 4, "num_heads": 4, "width": 128, "context": 64}
GOAL: Final = 1.92
REFERENCE: Final = 1.898  # nanoGPT's own checkpoint on this measure

console = Console(stderr=True)


def job_of(text: Path, seed: int) -> ComputeJob:
    """The recipe as a job."""
    return ComputeJob(
        name=f"shakespeare-{seed}",
        model_config=MODEL,
        data_config={"text": str(text), "tokenizer": "char", "heldout_fraction": 0.1},
        training_config=TRAINING | {"seed": seed},
        peers_config={"min": NUM_PEERS},
    )


async def run_seeds(text: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """One swarm of real processes trains one job for each seed, one after the other."""
    async with peers_on_loopback() as (network, scratch):
        return [await run_seed(network, text, seed, scratch) for seed in seeds]


async def run_seed(network: Network, text: Path, seed: int, scratch: Path) -> dict[str, Any]:
    """Train one seed; return its figures."""
    started = time.monotonic()
    job_id = await network.submit(job_of(text, seed))
    losses: list[tuple[int, float]] = []
    async for view in network.watch(job_id):
        if len(view.eval_losses) > len(losses):
            losses = list(view.eval_losses)
            share = view.num_tokens / view.total_tokens
            console.print(
                f"seed {seed}: {share:4.0%}, {view.num_rounds} rounds, loss {losses[-1][1]:.4f}"
            )
    output = await network.result(job_id, scratch / f"result-{seed}")
    loss, num_tokens = await asyncio.to_thread(held_out_loss, output.folder, text)
    console.print(f"seed {seed}: outer validation loss {loss:.4f} over {num_tokens} tokens")
    return {
        "seed": seed,
        "outer_validation_loss": loss,
        "validation_tokens": num_tokens,
        "num_rounds": output.num_rounds,
        "training_tokens": output.num_tokens,
        "shares": shares(output),
        "wall_s": round(time.monotonic() - started, 1),
        "losses_by_round": losses,
    }


def result_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The result as it is written down."""
    losses = [run["outer_validation_loss"] for run in runs]
    smallest = min(min(run["shares"].values()) for run in runs)
    mean = statistics.mean(losses)
    return {
        "question": "Do four real peers reach the loss of nanoGPT's CPU recipe?",
        "outer_validation_loss": mean,
        "goal": GOAL,
        "nanogpt_checkpoint": REFERENCE,
        "smallest_share": smallest,
        "is_met": mean <= GOAL and smallest >= 0.20,
        "runs": runs,
        "settings": {"model": MODEL, "training": TRAINING, "peers": NUM_PEERS},
        "command": "python -m " + " ".join(["experiments.shakespeare", "--text", "FILE"]),
        "machine": machine.facts(),
    }


def table_of(result: dict[str, Any]) -> Table:
    """What a person reads."""
    table = Table(title="tiny Shakespeare, four peers")
    for column in ("seed", "outer validation loss", "rounds", "smallest share", "wall, s"):
        table.add_column(column, justify="right")
    for run in result["runs"]:
        table.add_row(
            str(run["seed"]),
            f"{run['outer_validation_loss']:.4f}",
            str(run["num_rounds"]),
            f"{min(run['shares'].values()):.1%}",
            f"{run['wall_s']:.0f}",
        )
    table.add_section()
    table.add_row("mean", f"{result['outer_validation_loss']:.4f}", "", "", "")
    table.add_row("nanoGPT", f"{REFERENCE:.4f}", "", "", "")
    return table


def main() -> None:
    """Run, print a table, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.shakespeare", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="the 1,115,394-byte text")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent.parent / "results" / "shakespeare.json"
    )
    options = parser.parse_args()
    if not options.text.is_file():
        sys.exit(f"there is no file {options.text}; give the path of tinyshakespeare.txt")
    runtime.configure_logging(verbosity=-1)
    runs = runtime.run(run_seeds(options.text.resolve(), list(range(1, options.seeds + 1))))
    result = result_of(runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    Console().print(table_of(result))
    print(json.dumps({"outer_validation_loss": result["outer_validation_loss"]}))


if __name__ == "__main__":
    main()
