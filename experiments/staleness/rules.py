"""A small twin, much faster than the product's code, to try rules for early steps on.

All replicas of all seeds are one batch of models; means are exact and come `early` steps late.
Its figures are in `experiments/results/staleness-rules.json`. Not a contender: what it finds is
to be confirmed with `python -m experiments.staleness`.

    python -m experiments.staleness.rules --text FILE --steps 800 early=8 early=8,momentum=0.6,lr=1

R = replicas of all seeds, S = seeds, P = flat parameters, B = samples, T = tokens, D = width
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zoonet.config import TrainingConfig
from zoonet.training.drift import known_scale, share_after
from zoonet.training.inner import learning_rate
from zoonet.training.order import SampleOrder
from zoonet.training.tokenizers import CharTokenizer

CONTEXT: Final = 64
HEADS: Final = 4
REPLICAS: Final = 4
BATCH: Final = 3
BETAS: Final = (0.9, 0.99)
DECAY: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is varied. `early` of each round's `inner_steps` come before the last mean is there."""

    early: int = 0
    inner_steps: int = 25
    lr: float = 0.7  # outer
    momentum: float = 0.9  # outer
    kind: Literal["keep", "drop", "gradients"] = "keep"  # what becomes of early steps
    own: float = 1.0  # early steps start this much of the own work,
    ahead: float = 0.0  # and of the momentum, and
    last: float = 0.0  # of the last mean from the outer parameters
    spread: bool = False  # momentum moves parameters in the steps of the next round
    fade: float = 0.0  # last share of steps, in which the outer step becomes a plain mean


class Batch:
    """Small GPTs, one for each row of theta_RP, and the loss of each."""

    def __init__(self, vocab: int, width: int, layers: int) -> None:
        self.vocab, self.width, self.layers = vocab, width, layers
        deep = 0.02 / math.sqrt(2 * layers)
        self.shapes: dict[str, tuple[tuple[int, ...], float]] = {
            "tokens": ((vocab, width), 0.02),
            "positions": ((CONTEXT, width), 0.02),
        }
        for layer in range(layers):
            self.shapes |= {
                f"norm1 {layer}": ((width,), 1),
                f"qkv {layer}": ((3 * width, width), 0.02),
                f"out {layer}": ((width, width), deep),
                f"norm2 {layer}": ((width,), 1),
                f"up {layer}": ((4 * width, width), 0.02),
                f"down {layer}": ((width, 4 * width), deep),
            }
        self.shapes["norm"] = ((width,), 1)
        self.sizes = [math.prod(shape) for shape, _ in self.shapes.values()]
        matrices = [float(len(shape) > 1) for shape, _ in self.shapes.values()]
        self.decayed_P = torch.repeat_interleave(torch.tensor(matrices), torch.tensor(self.sizes))

    def initial(self, seed: int) -> Tensor:
        """Fresh parameters_P."""
        drawn = torch.Generator().manual_seed(seed)
        parts = [
            torch.ones(size) if std == 1 else torch.randn(size, generator=drawn) * std
            for size, (_, std) in zip(self.sizes, self.shapes.values(), strict=True)
        ]
        return torch.cat(parts)

    def loss(self, theta_RP: Tensor, x_RBT: Tensor, y_RBT: Tensor) -> Tensor:
        """Mean loss_R of each model on its own batch."""
        R, B, T = x_RBT.shape
        D = self.width
        parts = torch.split(theta_RP, self.sizes, 1)
        w = {
            name: part.reshape(R, *shape)
            for (name, (shape, _)), part in zip(self.shapes.items(), parts, strict=True)
        }
        rows = x_RBT + (torch.arange(R) * self.vocab)[:, None, None]
        h = F.embedding(rows, w["tokens"].reshape(R * self.vocab, D)).view(R, B, T, D)
        h = (h + w["positions"][:, None]).view(R, B * T, D)
        for layer in range(self.layers):
            z = F.layer_norm(h, (D,)) * w[f"norm1 {layer}"][:, None]
            qkv = torch.bmm(z, w[f"qkv {layer}"].transpose(1, 2))
            q, k, v = qkv.view(R * B, T, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            z = z.transpose(1, 2).reshape(R, B * T, D)
            h = h + torch.bmm(z, w[f"out {layer}"].transpose(1, 2))
            z = F.layer_norm(h, (D,)) * w[f"norm2 {layer}"][:, None]
            z = F.gelu(torch.bmm(z, w[f"up {layer}"].transpose(1, 2)), approximate="tanh")
            h = h + torch.bmm(z, w[f"down {layer}"].transpose(1, 2))
        h = F.layer_norm(h, (D,)) * w["norm"][:, None]
        logits = torch.bmm(h, w["tokens"].transpose(1, 2))
        return (
            F.cross_entropy(logits.view(-1, self.vocab), y_RBT.reshape(-1), reduction="none")
            .view(R, -1)
            .mean(1)
        )


class Text:
    """Training batches by slot, and windows held out."""

    def __init__(self, path: Path, seeds: list[int]) -> None:
        text = path.read_text()
        tokenizer = CharTokenizer.of(text)
        cut = len(text) * 9 // 10
        self.train = tokenizer.encode(text[:cut]).astype(np.int64)
        self.heldout = tokenizer.encode(text[cut:]).astype(np.int64)
        self.vocab = int(max(self.train.max(), self.heldout.max())) + 1
        self._orders = [SampleOrder(len(self.train), CONTEXT, seed) for seed in seeds]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return x_RBT and y_RBT of every replica's step."""
        slots = range(step * REPLICAS, (step + 1) * REPLICAS)
        starts = [order.slot_starts(slot, BATCH) for order in self._orders for slot in slots]
        return _windows(self.train, np.concatenate(starts), len(starts))


def _windows(tokens: NDArray[np.int64], starts: NDArray[np.int64], R: int) -> tuple[Tensor, Tensor]:
    both = torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)])
    both = both.view(R, -1, CONTEXT + 1)
    return both[..., :-1], both[..., 1:]


class Trial:
    """Replicas of some seeds under one rule."""

    def __init__(self, rule: Rule, text: Text, seeds: list[int], steps: int, width: int) -> None:
        self.rule, self.text, self.steps = rule, text, steps
        self.spec = TrainingConfig(tokens=1, inner_lr=3e-3, warmup_fraction=0.05)
        self.model = Batch(text.vocab, width, layers=2)
        self.outer_SP = torch.stack([self.model.initial(seed) for seed in seeds])
        self.momentum_SP = torch.zeros_like(self.outer_SP)
        self.last_SP = torch.zeros_like(self.outer_SP)
        self.theta_RP = self._each(self.outer_SP).clone().requires_grad_()
        self.first_RP = torch.zeros_like(self.theta_RP)
        self.second_RP = torch.zeros_like(self.theta_RP)
        self.num_steps = 0
        self.lr, self.momentum = rule.lr, rule.momentum
        self.share = 0.0  # of the momentum, that parameters have moved on by

    def _each(self, value_SP: Tensor) -> Tensor:
        return value_SP.repeat_interleave(REPLICAS, 0)

    @property
    def _scale(self) -> float:
        return known_scale(self.lr, self.momentum)

    def play(self) -> list[float]:
        """Train to the end; return the held-out loss of each seed."""
        rule, trained = self.rule, 0
        told_RP = base_RP = self.theta_RP.detach().clone()
        gradients: list[Tensor] = []
        for step in range(self.steps):
            place = step % rule.inner_steps
            is_early = step >= rule.inner_steps and place < rule.early
            if step >= rule.inner_steps and place == rule.early:
                self._move(told_RP, base_RP, step / self.steps)
                if gradients:
                    rate = learning_rate((step - 0.5) / self.steps, self.spec) * len(gradients)
                    self._adam(torch.stack(gradients).mean(0), rate)
                    gradients = []
            if not (is_early and rule.kind == "drop"):
                gradient_RP = self._gradient(trained)
                trained += 1
                if is_early and rule.kind == "gradients":
                    gradients.append(gradient_RP)
                else:
                    self._adam(gradient_RP, learning_rate((step + 0.5) / self.steps, self.spec))
            if rule.spread and not is_early:
                self._drift(share_after(self.share, 1.0, rule.inner_steps - place))
            if place == rule.inner_steps - 1:
                told_RP, base_RP = self._leave()
        self._outer_step(self.theta_RP.detach(), 1.0)
        return self._heldout()

    def _gradient(self, step: int) -> Tensor:
        loss_R = self.model.loss(self.theta_RP, *self.text.batch(step))
        (gradient_RP,) = torch.autograd.grad(loss_R.sum(), self.theta_RP)
        norm_R1 = gradient_RP.norm(dim=1, keepdim=True)
        scale_R1: Tensor = (1.0 / (norm_R1 + 1e-6)).clamp(max=1.0)
        return gradient_RP.mul_(scale_R1)

    @torch.no_grad()
    def _adam(self, gradient_RP: Tensor, rate: float) -> None:
        self.num_steps += 1
        correction1, correction2 = (1 - beta**self.num_steps for beta in BETAS)
        self.theta_RP.mul_(1 - rate * DECAY * self.model.decayed_P)
        self.first_RP.lerp_(gradient_RP, 1 - BETAS[0])
        self.second_RP.mul_(BETAS[1]).addcmul_(gradient_RP, gradient_RP, value=1 - BETAS[1])
        scale = math.sqrt(correction2)
        denominator = self.second_RP.sqrt().add_(1e-8 * scale)
        self.theta_RP.addcdiv_(self.first_RP, denominator, value=-rate * scale / correction1)

    @torch.no_grad()
    def _drift(self, share: float) -> None:
        moved = (share - self.share) * self._scale
        self.theta_RP.sub_(self._each(self.momentum_SP), alpha=moved)
        self.share = share

    @torch.no_grad()
    def _leave(self) -> tuple[Tensor, Tensor]:
        """End a round: return what is told, and where early steps start from."""
        rule, told_RP = self.rule, self.theta_RP.clone()
        if rule.early and (rule.own, rule.ahead, rule.last) != (1.0, 0.0, 0.0):
            outer_RP = self._each(self.outer_SP)
            moved_RP = rule.ahead * self._each(self.momentum_SP) + rule.last * self._each(
                self.last_SP
            )
            self.theta_RP.copy_(outer_RP - rule.own * (outer_RP - told_RP) - moved_RP)
        return told_RP, self.theta_RP.clone()

    @torch.no_grad()
    def _move(self, told_RP: Tensor, base_RP: Tensor, progress: float) -> None:
        """The mean of what was told is there: go on from it, with what came since."""
        since_RP = self.theta_RP - base_RP
        self._outer_step(told_RP, progress)
        keeps = self.rule.kind == "keep"
        self.theta_RP.copy_(self._each(self.outer_SP) + (since_RP if keeps else 0.0))

    @torch.no_grad()
    def _outer_step(self, told_RP: Tensor, progress: float) -> None:
        delta_RP = self._each(self.outer_SP) - told_RP
        delta_RP -= self.share * self._scale * self._each(self.momentum_SP)
        self.share = 0.0
        mean_SP = delta_RP.view(len(self.outer_SP), REPLICAS, -1).mean(1)
        left = min(1.0, (1.0 - progress) / self.rule.fade) if self.rule.fade else 1.0
        self.lr, self.momentum = 1 + (self.rule.lr - 1) * left, self.rule.momentum * left
        self.momentum_SP = self.momentum * self.momentum_SP + mean_SP
        self.outer_SP = self.outer_SP - self.lr * (self.momentum * self.momentum_SP + mean_SP)
        self.last_SP = mean_SP

    @torch.no_grad()
    def _heldout(self) -> list[float]:
        tokens, num_seeds = self.text.heldout, len(self.outer_SP)
        starts = np.arange(0, len(tokens) - CONTEXT, CONTEXT)
        total_S = torch.zeros(num_seeds)
        for first in range(0, len(starts), 64):
            some = starts[first : first + 64]
            x, y = (part.expand(num_seeds, -1, -1) for part in _windows(tokens, some, 1))
            total_S += self.model.loss(self.outer_SP, x, y) * len(some)
        losses: list[float] = (total_S / len(starts)).tolist()
        return losses


def rule_of(text: str) -> Rule:
    """Read "early=8,momentum=0.6,lr=1"."""
    changed: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        default = getattr(Rule(), name, None)
        if default is None:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(asdict(Rule()))}")
        kind = type(default)
        changed[name] = value in ("1", "true", "True") if kind is bool else kind(value)
    return replace(Rule(), **changed)


def main() -> None:
    """Print a line of JSON for each rule."""
    parser = argparse.ArgumentParser(prog="python -m experiments.staleness.rules")
    parser.add_argument("rules", type=rule_of, nargs="+", help="such as early=8,momentum=0.6,lr=1")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800, help="of each replica")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(1, options.seeds + 1))
    text = Text(options.text, seeds)
    for rule in options.rules:
        losses = Trial(rule, text, seeds, options.steps, options.width).play()
        print(json.dumps({**asdict(rule), "losses": losses}), flush=True)


if __name__ == "__main__":
    main()
