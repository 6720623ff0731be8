"""From a spec to a model, and between a model and its flat parameter vector.

P = flat parameters, in the order of `named_parameters` (tied weights once)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zoonet.config import ModelSpec
from zoonet.training.export import Layout
from zoonet.training.models.base import TrainableModel
from zoonet.training.models.embedding import TextEncoder
from zoonet.training.models.gpt import GPT


def build_model(spec: ModelSpec, *, device: torch.device | str = "cpu") -> TrainableModel:
    """Make the model with fresh random weights in fp32. Raises ConfigError."""
    with torch.device(device):
        match spec.kind:
            case "gpt":
                return GPT(spec)
            case "embedding":
                return TextEncoder(spec)
            case "transformers":
                from zoonet.training.models.causal_lm import CausalLM

                return CausalLM(spec)


def count_parameters(spec: ModelSpec) -> int:
    """Number of parameters P, found without allocating them. Raises ConfigError."""
    return sum(parameter.numel() for parameter in build_model(spec, device="meta").parameters())


def layout_of(spec: ModelSpec) -> Layout:
    """Names and shapes of the tensors within the flat vector, found without allocating them."""
    named = build_model(spec, device="meta").named_parameters()
    return tuple((name, tuple(parameter.shape)) for name, parameter in named)


def initial_parameters(spec: ModelSpec, *, seed: int) -> NDArray[np.float32]:
    """Draw initial parameters_P on CPU.

    The bits depend on the machine, so a job's own travel by content id, never by seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return flatten(build_model(spec))


def flatten(model: nn.Module) -> NDArray[np.float32]:
    """Copy the parameters into one vector_P."""
    parts = [parameter.detach().float().cpu().flatten() for parameter in model.parameters()]
    vector_P: NDArray[np.float32] = torch.cat(parts).numpy()
    return vector_P


@torch.no_grad()
def unflatten_(theta_P: NDArray[np.float32], model: nn.Module) -> None:
    """Copy a vector_P into the model's parameters. Raises ValueError for another length."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    if theta_P.shape != (sum(sizes),):
        raise ValueError(f"a vector of shape {theta_P.shape} for {sum(sizes)} parameters")
    parts = torch.split(torch.from_numpy(theta_P), sizes)
    for parameter, part_ in zip(model.parameters(), parts, strict=True):
        parameter.copy_(part_.view_as(parameter))


def hidden_matrices(model: nn.Module, vocab_size: int) -> frozenset[str]:
    """Names of the weights that Muon handles: matrices that are no embedding and no head."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and id(parameter) not in embeddings
        and vocab_size not in parameter.shape
    )
