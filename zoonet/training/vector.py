"""Anybody's PyTorch model as one flat vector, in the order of its parameters' names.

Only parameters that require a gradient are in it. Everything else, frozen parameters and buffers
such as the running statistics of BatchNorm, stays as each peer has it.

P = flat parameters, fp32
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoonet.errors import ConfigError
from zoonet.training.export import Layout

_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and DataParallel, in front of names


class ModelVector:
    """Reads and writes the trainable parameters of a model in place, on whatever device.

    What a parameter of lower precision cannot hold is remembered beside it in fp32, so that small
    outer steps add up there, too. Raises ConfigError for a model that cannot be trained this way.
    """

    def __init__(self, model: nn.Module) -> None:
        found = _unwrapped(
            {name: each for name, each in model.named_parameters() if each.requires_grad}
        )
        if not found:
            raise ConfigError("the model has no parameter that requires a gradient")
        for name, parameter in found.items():
            _check(name, parameter)
        self.parameters = tuple(found[name] for name in sorted(found))
        self.layout: Layout = tuple((name, tuple(found[name].shape)) for name in sorted(found))
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters)
        self._spans: list[slice] = []
        start = 0
        for parameter in self.parameters:
            self._spans.append(slice(start, start + parameter.numel()))
            start += parameter.numel()
        self._beyond: dict[int, Tensor] = {  # what the parameter cannot hold, on its device
            index: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for index, parameter in enumerate(self.parameters)
            if torch.finfo(parameter.dtype).bits < 32
        }

    @torch.no_grad()
    def store(self, out_P: NDArray[np.float32]) -> None:
        """Write the parameters to CPU memory."""
        for index, parameter in enumerate(self.parameters):
            place = torch.from_numpy(out_P[self._spans[index]]).view(parameter.shape)
            place.copy_(self._exact(index))

    @torch.no_grad()
    def load_(self, theta_P: NDArray[np.float32]) -> None:
        """Take the parameters from CPU memory."""
        for index in range(len(self.parameters)):
            self._put(index, self._part(theta_P, index))

    @torch.no_grad()
    def shift_(self, by_P: NDArray[np.float32]) -> None:
        """Add to the parameters."""
        for index in range(len(self.parameters)):
            self._put(index, self._exact(index) + self._part(by_P, index))

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether no parameter has become NaN or infinite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters)

    def _exact(self, index: int) -> Tensor:
        parameter = self.parameters[index].detach()
        beyond = self._beyond.get(index)
        return parameter if beyond is None else parameter.float() + beyond

    def _put(self, index: int, value: Tensor) -> None:
        parameter = self.parameters[index]
        parameter.copy_(value)
        if index in self._beyond:
            torch.sub(value, parameter.detach().float(), out=self._beyond[index])

    def _part(self, vector_P: NDArray[np.float32], index: int) -> Tensor:
        parameter = self.parameters[index]
        part = torch.from_numpy(vector_P[self._spans[index]]).view(parameter.shape)
        return part.to(parameter.device)


def _unwrapped(found: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Leave out of the names what a wrapper puts before all of them: another may do without."""
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): parameter for name, parameter in found.items()}
    return found


def _check(name: str, parameter: Tensor) -> None:
    if not parameter.is_floating_point():
        raise ConfigError(f"the parameter {name} is of {parameter.dtype}, not of real numbers")
    if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter):
        raise ConfigError(f"the parameter {name} has no values yet; initialise the model first")
    if hasattr(parameter, "full_tensor"):
        raise ConfigError(f"the parameter {name} is spread over devices; prepare the whole model")
