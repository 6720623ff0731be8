"""A model whose parameters and gradients are views of one vector each.

The only place that knows how the flat vector and the device's memory belong together: where one
peer spreads a model over several GPUs (FSDP2), `fully_shard` wraps the model here, `load_` hands
each rank its shard of the vector and `store` gathers them. Until then a peer uses one device.

P = flat parameters
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from zoonet.config import ModelSpec
from zoonet.errors import ConfigError
from zoonet.training.models.build import build_model

_SMALL_BYTES = 256 << 20


class FlatModel:
    """A model on a device, with `theta_P` and `grad_P` in fp32.

    Raises ConfigError where the model has another size than was promised, before it is made.
    """

    def __init__(self, spec: ModelSpec, num_parameters: int, device: torch.device) -> None:
        check_size(spec, num_parameters)
        self.device = device
        self.model = build_model(spec, device=device)
        self.theta_P = torch.empty(num_parameters, device=device)
        self.grad_P = torch.zeros(num_parameters, device=device)
        self.spans: dict[str, tuple[slice, torch.Size]] = {}
        self._adopt()

    def _adopt(self) -> None:
        start = 0
        for name, parameter in self.model.named_parameters():
            span = slice(start, start + parameter.numel())
            self.theta_P[span] = parameter.detach().flatten()
            parameter.data = self.theta_P[span].view(parameter.shape)
            parameter.grad = self.grad_P[span].view(parameter.shape)
            self.spans[name] = (span, parameter.shape)
            start = span.stop

    def load_(self, theta_P: NDArray[np.float32]) -> None:
        """Take the parameters from CPU memory."""
        self.theta_P.copy_(torch.from_numpy(theta_P))

    def store(self, out_P: NDArray[np.float32]) -> None:
        """Write the parameters to CPU memory."""
        torch.from_numpy(out_P).copy_(self.theta_P)


def check_size(spec: ModelSpec, num_parameters: int) -> None:
    """Raise ConfigError where the model takes more memory than was promised; allocates nothing."""
    model = build_model(spec, device="meta")
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != num_parameters:
        raise ConfigError(f"the job promises {num_parameters} parameters, its model has {found}")
    buffer_bytes = sum(buffer.nbytes for buffer in model.buffers())
    if buffer_bytes > max(_SMALL_BYTES, 4 * num_parameters):
        raise ConfigError(f"the model takes {buffer_bytes} bytes besides its parameters")
