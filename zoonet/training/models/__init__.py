"""The architectures that a job can name. Everything here imports torch."""

from zoonet.training.models.build import (
    build_model,
    count_parameters,
    flatten,
    hidden_matrices,
    initial_parameters,
    layout_of,
    unflatten_,
)
from zoonet.training.models.flat import FlatModel, Part, PlacedModel
from zoonet.training.models.sharded import ShardedModel

__all__ = [
    "FlatModel",
    "Part",
    "PlacedModel",
    "ShardedModel",
    "build_model",
    "count_parameters",
    "flatten",
    "hidden_matrices",
    "initial_parameters",
    "layout_of",
    "unflatten_",
]
