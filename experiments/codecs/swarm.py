"""A few replicas of a small GPT that train on the standard library's own text, in one process.

Each round every replica takes H inner steps, its pseudo-gradient and feedback go through a codec,
and everybody takes an outer step of plain SGD on the mean, as in SparseLoCo (arXiv 2508.15706).

P = flat parameters, B = samples, T = tokens
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zoonet.config import ModelSpec, TrainingConfig
from zoonet.exact import Vector, weighted_mean
from zoonet.training.gradient import BatchGradient
from zoonet.training.inner import InnerOptimizer, learning_rate
from zoonet.training.models import FlatModel, count_parameters, initial_parameters

Compress = Callable[[Vector, Vector], Vector]  # delta_P, feedback_P (updated) -> what is sent

HELD_OUT_WINDOWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained, and how."""

    num_layers: int = 4
    width: int = 128
    context: int = 64
    batch_size: int = 8
    replicas: int = 2
    rounds: int = 12
    inner_steps: int = 30
    inner_lr: float = 2e-3
    outer_lr: float = 1.0
    text_bytes: int = 4 << 20

    @property
    def model(self) -> ModelSpec:
        """The architecture: bytes in, bytes out."""
        return ModelSpec(
            kind="gpt",
            num_layers=self.num_layers,
            num_heads=4,
            width=self.width,
            context=self.context,
            dropout=0.0,
            vocab_size=256,
            hf_config={},
            embedding_dim=8,
        )

    @property
    def training(self) -> TrainingConfig:
        """The inner optimizer."""
        steps = self.rounds * self.inner_steps
        return TrainingConfig(
            tokens=max(1, steps * self.replicas * self.batch_size * self.context),
            batch_size=self.batch_size,
            inner_lr=self.inner_lr,
        )


def standard_library_text(num_bytes: int) -> NDArray[np.uint8]:
    """The first so many bytes of the standard library's modules, in the order of their names."""
    folder = Path(os.__file__).parent
    parts, total = [], 0
    for path in sorted(folder.glob("*.py")):
        parts.append(path.read_bytes())
        total += len(parts[-1])
        if total >= num_bytes:
            break
    return np.frombuffer(b"".join(parts)[:num_bytes], np.uint8)


class Replica:
    """One peer's model, inner optimizer and feedback."""

    def __init__(self, recipe: Recipe, text: NDArray[np.uint8], seed: int) -> None:
        num_parameters = count_parameters(recipe.model)
        self._recipe = recipe
        self._text = text
        self._random = np.random.default_rng(seed)
        self.flat = FlatModel(recipe.model, num_parameters, torch.device("cpu"))
        self._optimizer = InnerOptimizer(self.flat, recipe.training, frozenset())
        self._gradient = BatchGradient(self.flat.model, self.flat.grad_P, recipe.training)
        self.feedback_P = np.zeros(num_parameters, np.float32)
        self._num_steps = 0

    def train(self, theta_P: Vector) -> Vector:
        """Take H steps from these parameters; return the pseudo-gradient."""
        recipe = self._recipe
        self.flat.load_(theta_P)
        self.flat.model.train()
        for _ in range(recipe.inner_steps):
            high = len(self._text) - recipe.context
            batch = windows(self._text, self._random.integers(high, size=recipe.batch_size), recipe)
            self._gradient.backward(batch, self._num_steps)
            progress = self._num_steps / (recipe.rounds * recipe.inner_steps)
            self._optimizer.step_(learning_rate(progress, recipe.training))
            self._num_steps += 1
        local_P = np.empty_like(theta_P)
        self.flat.store(local_P)
        return np.subtract(theta_P, local_P)

    @torch.no_grad()
    def loss(self, theta_P: Vector, held_out: NDArray[np.uint8]) -> float:
        """Mean loss, in nats a byte, over the first windows of a text."""
        self.flat.load_(theta_P)
        self.flat.model.eval()
        starts_B = np.arange(HELD_OUT_WINDOWS) * self._recipe.context
        x_BT, y_BT = map(torch.from_numpy, windows(held_out, starts_B, self._recipe))
        return float(self.flat.model(x_BT, y_BT))


def train(recipe: Recipe, compress: Compress, seed: int) -> tuple[float, Vector]:
    """Train; return the held-out loss and the last (delta + feedback)_P that was compressed."""
    text = standard_library_text(recipe.text_bytes)
    cut = len(text) - (HELD_OUT_WINDOWS + 1) * recipe.context
    replicas = [Replica(recipe, text[:cut], seed * 100 + n) for n in range(recipe.replicas)]
    theta_P = initial_parameters(recipe.model, seed=seed)
    wanted_P = np.zeros_like(theta_P)
    for _ in range(recipe.rounds):
        sent = []
        for replica in replicas:
            delta_P = replica.train(theta_P)
            wanted_P = delta_P + replica.feedback_P
            sent.append(compress(delta_P, replica.feedback_P))
        mean_P = weighted_mean(sent, [1] * len(sent))
        theta_P = theta_P - np.float32(recipe.outer_lr) * mean_P
    return replicas[0].loss(theta_P, text[cut:]), wanted_P


def windows(
    text: NDArray[np.uint8], starts_B: NDArray[np.int64], recipe: Recipe
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs x_BT and targets y_BT."""
    positions = starts_B[:, None] + np.arange(recipe.context + 1)
    wide = text[positions].astype(np.int64)
    return wide[:, :-1].copy(), wide[:, 1:].copy()
