"""One training of the experiment: what is varied, and how it ends."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.shakespeare.__main__ import MODEL, TRAINING
from experiments.staleness.twin import Prepared, Twin
from zoonet.config import ComputeJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One training: `delay` of each round's `inner_steps` are taken before its mean is there."""

    text: str
    inner_steps: int
    delay: int
    seed: int = 1
    num_replicas: int = 4
    steps: int = 800  # of each replica
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    outer_momentum_spread: bool = False
    width: int = 128
    max_bytes: int = 0  # of the text; 0: all

    def job(self) -> ComputeJob:
        """The recipe of experiments.shakespeare, as long as this."""
        tokens_a_step = TRAINING["batch_size"] * MODEL["context"] * self.num_replicas
        changed = {
            "tokens": self.steps * tokens_a_step,
            "inner_steps": self.inner_steps,
            "outer_lr": self.outer_lr,
            "outer_momentum": self.outer_momentum,
            "outer_momentum_spread": self.outer_momentum_spread,
            "seed": self.seed,
            "eval_tokens": 0,
            "ahead": float(self.delay > 0),
        }
        return ComputeJob(
            name="staleness",
            model_config={**MODEL, "width": self.width},
            data_config={"text": self.text, "tokenizer": "char", "max_bytes": self.max_bytes},
            training_config={**TRAINING, **changed},
        )


def run(setting: Setting) -> tuple[Setting, float, float]:
    """Train; return the setting, the held-out loss and the seconds that it took."""
    torch.set_num_threads(1)
    began = time.monotonic()

    async def train() -> float:
        with tempfile.TemporaryDirectory(prefix="zn-") as folder:
            prepared = Prepared(setting.job(), Path(folder))
            async with Twin.open(
                prepared, num_replicas=setting.num_replicas, delay=setting.delay
            ) as twin:
                await twin.play()
                return await twin.loss()

    return setting, asyncio.run(train()), time.monotonic() - began
