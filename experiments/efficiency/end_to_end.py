"""The cross-check: do real peers come to the loss of their replicas in one process?

Real processes on this machine's loopback train the job that one process plays with the production
optimizer. Time is not compared: without accelerators of their own, peers would measure the cores.

    python -m experiments.efficiency.end_to_end --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.efficiency.contenders import Contender, Scale, Setting, recipe
from experiments.efficiency.tokens import course
from experiments.shakespeare.evaluate import held_out_loss
from experiments.shakespeare.swarm import NUM_PEERS, peers_on_loopback, shares
from experiments.testbed.results import RESULTS
from peers import runtime
from zoonet.config import ComputeJob, PeersConfig


def job_of(text: Path, scale: Scale) -> ComputeJob:
    """DiLoCo of as many peers as the swarm has, each with equally many steps a round."""
    peers = Contender(name="diloco", sites=(1,) * NUM_PEERS)
    setting = Setting(contender="diloco", num_peers=NUM_PEERS, inner_lr=4e-3)
    job = recipe(peers, setting, scale, str(text))
    even = replace(job.training_config, dynamic_steps=False)
    return replace(job, training_config=even, peers_config=PeersConfig(min=NUM_PEERS))


async def train_for_real(job: ComputeJob, text: Path) -> dict[str, Any]:
    """Train a job with real peers; return what came of it."""
    async with peers_on_loopback() as (network, scratch):
        began = time.monotonic()
        job_id = await network.submit(job)
        async for _ in network.watch(job_id):
            pass
        output = await network.result(job_id, scratch / "result")
        loss, _ = await asyncio.to_thread(held_out_loss, output.folder, text)
    return {
        "loss": loss,
        "num_rounds": output.num_rounds,
        "tokens": output.num_tokens,
        "shares": list(shares(output).values()),
        "wall_s": round(time.monotonic() - began, 1),
    }


async def check(text: Path, scale: Scale) -> dict[str, Any]:
    """Train once in one process and once with real peers."""
    job = job_of(text, scale)
    peers = Contender(name="diloco", sites=(1,) * NUM_PEERS)
    curve = await asyncio.to_thread(course, job, peers, lambda _: None)
    real = await train_for_real(job, text)
    return {"loss_in_one_process": curve[-1][1], "loss_of_real_peers": real.pop("loss"), **real}


def main() -> None:
    """Train twice, write one JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.efficiency.end_to_end")
    parser.add_argument("--text", type=Path, required=True, help="what to train on")
    parser.add_argument("--steps", type=int, default=150, help="of each peer (default 150)")
    parser.add_argument("--out", type=Path, default=RESULTS / "efficiency-end-to-end.json")
    options = parser.parse_args()
    runtime.configure_logging(verbosity=-1)
    scale = Scale(steps=options.steps)
    found = runtime.run(check(options.text.resolve(), scale))
    result = {
        "question": "Do real peers come to the loss of their replicas in one process?",
        **found,
        "settings": {"peers": NUM_PEERS, **asdict(scale), "text": options.text.name},
        "machine": machine.facts(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
