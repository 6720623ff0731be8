"""A model whose parameters and gradients are views of one vector each.

P = flat parameters. Where several ranks hold a model together, `grad_P` and vectors like it are
what this rank holds of them, while vectors in CPU memory are always whole: each rank reads and
writes its own elements there, and no device ever sees the others'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoonet.config import ModelSpec
from zoonet.errors import ConfigError
from zoonet.training.export import Layout
from zoonet.training.models.base import TrainableModel
from zoonet.training.models.build import build_model
from zoonet.training.ranks import ALONE, Ranks

_SMALL_BYTES = 256 << 20
_SHIFT_ELEMENTS = 1 << 24  # that are on the device twice for a moment

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """What of one parameter is held here: all of it, or a rank's rows."""

    shape: torch.Size  # of the whole parameter
    held: slice  # of a whole vector_P
    own: slice  # of grad_P
    theta: Tensor
    grad: Tensor  # a view of grad_P


class PlacedModel:
    """A model in fp32 on a device, in parts: one for each parameter, in order."""

    model: TrainableModel
    device: torch.device
    num_parameters: int  # of the whole model
    ranks: Ranks
    grad_P: Tensor
    parts: dict[str, Part]

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors within the whole vector_P, in order."""
        return tuple((name, tuple(part.shape)) for name, part in self.parts.items())

    @torch.no_grad()
    def load_(self, theta_P: Vector) -> None:
        """Take the parameters from CPU memory."""
        for part in self.parts.values():
            part.theta.view(-1).copy_(torch.from_numpy(theta_P[part.held]))

    @torch.no_grad()
    def store(self, out_P: Vector) -> None:
        """Write the parameters to CPU memory."""
        for part in self.parts.values():
            torch.from_numpy(out_P[part.held]).copy_(part.theta.view(-1))

    @torch.no_grad()
    def store_sum(self, own_P: Tensor, scale: float, out_P: Vector) -> None:
        """Write the parameters plus so much of a vector like `grad_P` to CPU memory."""
        for part in self.parts.values():
            out = torch.from_numpy(out_P[part.held])
            whole = (part.theta.view(-1), own_P[part.own], out)
            pieces = (torch.split(each, _SHIFT_ELEMENTS) for each in whole)
            for theta, own, target in zip(*pieces, strict=True):
                target.copy_(torch.add(theta, own, alpha=scale))

    @torch.no_grad()
    def add_(self, own_P: Tensor, scale: float) -> None:
        """Add so much of a vector like `grad_P` to the parameters."""
        for part in self.parts.values():
            part.theta.view(-1).add_(own_P[part.own], alpha=scale)

    @torch.no_grad()
    def shift_(self, by_P: Vector) -> None:
        """Add to the parameters."""
        for part in self.parts.values():
            whole = (part.theta.view(-1), torch.from_numpy(by_P[part.held]))
            pieces = (torch.split(each, _SHIFT_ELEMENTS) for each in whole)
            for theta, by in zip(*pieces, strict=True):
                theta += by.to(self.device)

    def take_(self, own_P: Tensor, vector_P: Vector) -> None:
        """Fill a vector like `grad_P` from CPU memory."""
        for part in self.parts.values():
            own_P[part.own].copy_(torch.from_numpy(vector_P[part.held]))

    def give(self, own_P: Tensor, out_P: Vector) -> None:
        """Write a vector like `grad_P` to CPU memory."""
        for part in self.parts.values():
            torch.from_numpy(out_P[part.held]).copy_(own_P[part.own])

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether no parameter is NaN or infinite, on any rank."""
        wrong = [~torch.isfinite(part.theta).all() for part in self.parts.values()]
        return not self.ranks.total(torch.stack(wrong).sum()).item()

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Euclidean norm () of the whole gradient."""
        norm = torch.linalg.vector_norm(self.grad_P)
        return norm if self.ranks.size == 1 else self.ranks.total(norm.square()).sqrt()


class FlatModel(PlacedModel):
    """A model on one device, with `theta_P` and `grad_P` in fp32.

    Raises ConfigError where the model has another size than was promised, before it is made.
    """

    def __init__(self, spec: ModelSpec, num_parameters: int, device: torch.device) -> None:
        check_size(spec, num_parameters)
        self.device = device
        self.num_parameters = num_parameters
        self.ranks = ALONE
        self.model = build_model(spec, device=device)
        self.theta_P = torch.empty(num_parameters, device=device)
        self.grad_P = torch.zeros(num_parameters, device=device)
        self.parts = {}
        self._adopt()

    def _adopt(self) -> None:
        start = 0
        for name, parameter in self.model.named_parameters():
            span = slice(start, start + parameter.numel())
            self.theta_P[span] = parameter.detach().flatten()
            theta = self.theta_P[span].view(parameter.shape)
            grad = self.grad_P[span].view(parameter.shape)
            parameter.data = theta
            parameter.grad = grad
            self.parts[name] = Part(parameter.shape, held=span, own=span, theta=theta, grad=grad)
            start = span.stop


def check_size(spec: ModelSpec, num_parameters: int) -> None:
    """Raise ConfigError where the model takes more memory than was promised; allocates nothing."""
    model = build_model(spec, device="meta")
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != num_parameters:
        raise ConfigError(f"the job promises {num_parameters} parameters, its model has {found}")
    buffer_bytes = sum(buffer.nbytes for buffer in model.buffers())
    if buffer_bytes > max(_SMALL_BYTES, 4 * num_parameters):
        raise ConfigError(f"the model takes {buffer_bytes} bytes besides its parameters")
