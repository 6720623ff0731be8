"""A model as files: its weights, the same bytes from every replica, and its architecture.

P = flat parameters
"""

from __future__ import annotations

import json
import math
from typing import Final

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zoonet.config import ModelSpec
from zoonet.exact import Vector

Layout = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes, in the order of the vector
SPEC_KEY: Final = "zoonet_model"  # in a config.json that another library reads too


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


def to_config(spec: ModelSpec) -> bytes:
    """The architecture as JSON: the fields of `ModelSpec`.

    For a model of `transformers` it is that library's own config.json, with these fields under
    SPEC_KEY, so that `AutoModelForCausalLM.from_pretrained` reads the folder as it is. Raises
    ConfigError where the library cannot build the model.
    """
    fields = msgspec.to_builtins(spec)
    if spec.kind == "transformers":
        from zoonet.training.models.causal_lm import library_config  # imports torch

        fields = library_config(spec) | {SPEC_KEY: fields}
    return json.dumps(fields, indent=2).encode()


def from_config(raw: bytes) -> ModelSpec:
    """Read what `to_config` made. Raises ValueError."""
    fields = msgspec.json.decode(raw)
    if isinstance(fields, dict) and SPEC_KEY in fields:
        fields = fields[SPEC_KEY]
    return msgspec.convert(fields, ModelSpec)
