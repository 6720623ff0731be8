"""A finished model as a safetensors file, the same bytes from every replica."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zoonet.config import ModelSpec
from zoonet.training.models.build import build_model
from zoonet.training.outer import Vector


def to_safetensors(spec: ModelSpec, theta_P: Vector) -> bytes:
    """Name the flat parameters (P,) as the model does. Raises ValueError for another length."""
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for name, parameter in build_model(spec, device="meta").named_parameters():
        stop = start + parameter.numel()
        tensors[name] = theta_P[start:stop].reshape(tuple(parameter.shape))
        start = stop
    if start != theta_P.size:
        raise ValueError(f"{theta_P.size} values for a model of {start} parameters")
    # One key alone: safetensors writes several metadata keys in an order that differs by run.
    raw: bytes = save(tensors, metadata={"format": "pt"})
    return raw


def from_safetensors(spec: ModelSpec, raw: bytes) -> Vector:
    """The flat parameters (P,) of a file that `to_safetensors` made.

    Raises ValueError where names, shapes or types are not those of the model.
    """
    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    parts = []
    for name, parameter in build_model(spec, device="meta").named_parameters():
        found = tensors.pop(name, None)
        if found is None or found.shape != tuple(parameter.shape) or found.dtype != np.float32:
            raise ValueError(f"the file has no {name} of shape {tuple(parameter.shape)} in fp32")
        parts.append(found.ravel())
    if tensors:
        raise ValueError(f"the file has {sorted(tensors)[:3]}, which the model does not know")
    return np.concatenate(parts)
