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
from zoonet.training.models.flat import FlatModel

__all__ = [
    "FlatModel",
    "build_model",
    "count_parameters",
    "flatten",
    "hidden_matrices",
    "initial_parameters",
    "layout_of",
    "unflatten_",
]
