"""The inner optimizer: AdamW or Muon over flat vectors, and the learning rate.

Written out because `torch.optim` imports the compiler stack (2 s and 90 MB in each trainer), and
because the state must mirror into one vector.

P = flat parameters, N = 2P + 1: first moment, second moment, number of steps
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoonet.config import TrainingSpec
from zoonet.training.models import Part, PlacedModel

_EPSILON = 1e-8
_MUON_MOMENTUM = 0.95


def learning_rate(progress: float, spec: TrainingSpec) -> float:
    """Return the inner learning rate at a position in [0, 1] of the job's tokens.

    Linear warm-up to `inner_lr`, then a cosine down to `min_lr_fraction` of it.
    """
    progress = min(1.0, max(0.0, progress))
    if progress < spec.warmup_fraction:
        return spec.inner_lr * progress / spec.warmup_fraction
    left = 1.0 - spec.warmup_fraction
    position = (progress - spec.warmup_fraction) / left if left > 0 else 1.0
    cosine = (1.0 + math.cos(math.pi * position)) / 2
    return spec.inner_lr * (spec.min_lr_fraction + (1.0 - spec.min_lr_fraction) * cosine)


@dataclass(frozen=True, slots=True)
class _Block:
    """One parameter, or a rank's rows of it: the views of the flat vectors that are its own."""

    num_rows: int  # of the whole parameter
    theta: Tensor
    grad: Tensor
    first: Tensor
    second: Tensor
    scratch: Tensor


class InnerOptimizer:
    """Steps the parameters along `flat.grad_P`. Decays matrices only, decoupled (AdamW).

    With Muon (MuLoCo, arXiv 2505.23725), hidden matrices step along their orthogonalised
    momentum, scaled so that the learning rate means what it means to AdamW (arXiv 2502.16982).
    """

    def __init__(self, flat: PlacedModel, spec: TrainingSpec, hidden: frozenset[str]) -> None:
        self._flat = flat
        self._spec = spec
        self._first_P = torch.zeros_like(flat.grad_P)
        self._second_P = torch.zeros_like(flat.grad_P)
        self._num_steps = 0
        longest = max(part.theta.numel() for part in flat.parts.values())
        self._scratch = torch.empty(longest, device=flat.device)
        blocks = {name: self._block(part) for name, part in flat.parts.items()}
        muon = hidden if spec.optimizer == "muon" else frozenset()
        self._muon_blocks = [block for name, block in blocks.items() if name in muon]
        self._adamw_blocks = [block for name, block in blocks.items() if name not in muon]

    def reset_(self) -> None:
        """Forget the moments, as a peer that joins does."""
        self._first_P.zero_()
        self._second_P.zero_()
        self._num_steps = 0

    def load_(self, inner_N: NDArray[np.float32]) -> None:
        """Take over a mirrored state. Raises ValueError for one that no optimizer left."""
        size = self._flat.num_parameters
        if inner_N.shape != (2 * size + 1,) or not inner_N[-1] >= 0:
            raise ValueError(f"an inner state of shape {inner_N.shape}, {inner_N[-1:]} steps")
        self._flat.take_(self._first_P, inner_N[:size])
        self._flat.take_(self._second_P, inner_N[size : 2 * size])
        self._num_steps = int(inner_N[-1])

    def store(self, out_N: NDArray[np.float32]) -> None:
        """Mirror the state into CPU memory."""
        size = self._flat.num_parameters
        self._flat.give(self._first_P, out_N[:size])
        self._flat.give(self._second_P, out_N[size : 2 * size])
        out_N[-1] = self._num_steps

    @torch.no_grad()
    def step_(self, lr: float) -> Tensor:
        """Clip the gradient to `grad_clip`, take one step, and return the gradient's norm ()."""
        norm = self._flat.grad_norm()
        if self._spec.grad_clip > 0:
            self._flat.grad_P.mul_((self._spec.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        self._num_steps += 1
        for block in self._adamw_blocks:
            self._adamw_(block, lr)
        for block in self._muon_blocks:
            self._muon_(block, lr)
        return norm

    def _adamw_(self, block: _Block, lr: float) -> None:
        beta1, beta2 = self._spec.betas
        correction1 = 1 - beta1**self._num_steps
        correction2 = 1 - beta2**self._num_steps
        if block.theta.ndim >= 2:
            block.theta.mul_(1 - lr * self._spec.weight_decay)
        block.first.lerp_(block.grad, 1 - beta1)
        block.second.mul_(beta2).addcmul_(block.grad, block.grad, value=1 - beta2)
        # lr * (m / c1) / (sqrt(v / c2) + eps), with the constants gathered on one side
        scale = math.sqrt(correction2)
        denominator = torch.sqrt(block.second, out=block.scratch).add_(_EPSILON * scale)
        block.theta.addcdiv_(block.first, denominator, value=-lr * scale / correction1)

    def _muon_(self, block: _Block, lr: float) -> None:
        block.first.lerp_(block.grad, 1 - _MUON_MOMENTUM)
        nesterov = block.grad.lerp(block.first, _MUON_MOMENTUM)
        is_mixed = self._spec.precision == "bf16" and block.theta.is_cuda
        ranks = self._flat.ranks
        whole = ranks.whole(nesterov, block.num_rows)  # a matrix is orthogonalised by all ranks
        update = orthogonalised(whole, torch.bfloat16 if is_mixed else torch.float32)
        block.theta.mul_(1 - lr * self._spec.weight_decay)
        rate = lr * 0.2 * math.sqrt(max(update.shape))
        block.theta.add_(update[ranks.rows(block.num_rows)], alpha=-rate)

    def _block(self, part: Part) -> _Block:
        shape = part.theta.shape
        return _Block(
            num_rows=part.shape[0] if part.shape else 1,
            theta=part.theta,
            grad=part.grad,
            first=self._first_P[part.own].view(shape),
            second=self._second_P[part.own].view(shape),
            scratch=self._scratch[: shape.numel()].view(shape),
        )


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix of the same shape with singular values near 1.

    Five steps of the quintic Newton-Schulz iteration (Jordan et al., "Muon", 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    update: Tensor = x.T if is_tall else x
    return update.to(matrix.dtype)
