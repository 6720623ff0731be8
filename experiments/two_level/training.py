"""One training of the experiment: what is varied, and how it ends."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from experiments.shakespeare.__main__ import MODEL, TRAINING
from experiments.staleness.twin import Prepared
from experiments.two_level.twin import SitedTwin
from zoonet.config import ComputeJob

CONTEXT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One training: sites of so many peers, which meet every `site_steps` steps (0: never)."""

    text: str
    site_sizes: tuple[int, ...]
    site_steps: int = 0
    batch_size: int = 3  # of each peer's step
    inner_lr: float = 2e-3
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    inner_steps: int = 25
    steps: int = 300  # of each peer
    seed: int = 1
    num_layers: int = 2
    width: int = 64
    max_bytes: int = 0  # of the text; 0: all

    @property
    def num_tokens(self) -> int:
        """That all peers together train on."""
        return self.steps * self.batch_size * CONTEXT * sum(self.site_sizes)

    def job(self) -> ComputeJob:
        """The recipe of experiments.shakespeare with these changes."""
        changed = {
            "tokens": self.num_tokens,
            "batch_size": self.batch_size,
            "inner_steps": self.inner_steps,
            "inner_lr": self.inner_lr,
            "outer_lr": self.outer_lr,
            "outer_momentum": self.outer_momentum,
            "seed": self.seed,
            "eval_tokens": 0,
        }
        return ComputeJob(
            name="two-level",
            model_config={
                **MODEL,
                "context": CONTEXT,
                "num_layers": self.num_layers,
                "width": self.width,
            },
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
            async with SitedTwin.open(
                prepared, site_sizes=setting.site_sizes, site_steps=setting.site_steps
            ) as twin:
                await twin.play()
                return await twin.loss()

    return setting, asyncio.run(train()), time.monotonic() - began
