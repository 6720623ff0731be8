"""A model as a safetensors file, the same bytes from every replica.

P = flat parameters
"""

from __future__ import annotations

import math

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zoonet.exact import Vector

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes, in the order of the vector


def to_safetensors(layout: Layout, theta_P: Vector) -> bytes:
    """Name the parts of the flat parameters. Raises ValueError for another length."""
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        tensors[name] = theta_P[start:stop].reshape(shape)
        start = stop
    if start != theta_P.size:
        raise ValueError(f"{theta_P.size} values for a model of {start} parameters")
    # One key alone: safetensors writes several metadata keys in an order that differs by run.
    return bytes(save(tensors, metadata={"format": "pt"}))


def from_safetensors(layout: Layout, raw: bytes) -> Vector:
    """The flat parameters (P,) of a file that `to_safetensors` made.

    Raises ValueError where names, shapes or types are not those of the layout.
    """
    try:
        tensors = load(raw)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    parts = []
    for name, shape in layout:
        found = tensors.pop(name, None)
        if found is None or found.shape != shape or found.dtype != np.float32:
            raise ValueError(f"the file has no {name} of shape {shape} in fp32")
        parts.append(found.ravel())
    if tensors:
        raise ValueError(f"the file has {sorted(tensors)[:3]}, which the model does not know")
    return np.concatenate(parts)
