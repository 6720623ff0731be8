"""A model that several ranks hold together: FSDP2, each block on its own.

A rank holds some rows of each parameter, of its gradient and of its moments. A block's parameters
are whole on a device only while the block is computed.
"""

from __future__ import annotations

import torch
from torch import nn

from zoonet.config import ModelSpec
from zoonet.errors import ConfigError
from zoonet.training.models.base import TrainableModel
from zoonet.training.models.build import build_model
from zoonet.training.models.flat import Part, PlacedModel, check_size
from zoonet.training.ranks import Group


class ShardedModel(PlacedModel):
    """A rank's part of a model in fp32. Raises ConfigError as `FlatModel` does."""

    ranks: Group

    def __init__(
        self, spec: ModelSpec, num_parameters: int, device: torch.device, ranks: Group
    ) -> None:
        check_size(spec, num_parameters)
        self.device = device
        self.num_parameters = num_parameters
        self.ranks = ranks
        self.model = build_model(spec)  # in CPU memory; block by block its rows go to the device
        _shard(self.model, ranks)
        sizes = [each.to_local().numel() for each in self._parameters().values()]  # type: ignore[attr-defined]
        self.grad_P = torch.zeros(sum(sizes), device=device)
        self.parts = {}
        self._adopt()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @torch.no_grad()
    def _adopt(self) -> None:
        from torch.distributed.tensor import DTensor

        start = own_start = 0
        for name, parameter in self._parameters().items():
            assert isinstance(parameter, DTensor)
            theta = parameter.to_local().detach()
            rows = self.ranks.rows(parameter.shape[0])
            assert theta.is_contiguous() and len(theta) == rows.stop - rows.start
            row_size = parameter.numel() // parameter.shape[0]
            held = slice(start + rows.start * row_size, start + rows.stop * row_size)
            own = slice(own_start, own_start + theta.numel())
            grad = self.grad_P[own].view(theta.shape)
            parameter.grad = DTensor.from_local(  # FSDP adds to a gradient that is there
                grad,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            self.parts[name] = Part(parameter.shape, held=held, own=own, theta=theta, grad=grad)
            start += parameter.numel()
            own_start = own.stop


def _shard(model: TrainableModel, ranks: Group) -> None:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    try:
        # The root, too, lets go of its parameters: else an evaluation would leave old ones there.
        for module in (*_blocks(model), model):
            fully_shard(module, mesh=ranks.mesh, reshard_after_forward=True)
    except ValueError as error:  # a parameter without rows
        raise ConfigError(f"this model cannot be spread over devices: {error}") from error
    register_fsdp_forward_method(model, "next_token_logits")


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost lists' elements: layers, which are computed one after the other."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [each for each in child if any(True for _ in each.parameters())]
        else:
            found += _blocks(child)
    return found
