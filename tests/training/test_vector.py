"""Anybody's model as one flat vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zoonet.errors import ConfigError
from zoonet.training.vector import ModelVector


def stored(vector: ModelVector) -> np.ndarray:
    theta_P = np.empty(vector.num_parameters, np.float32)
    vector.store(theta_P)
    return theta_P


def test_parameters_lie_in_the_order_of_their_names_and_come_back_as_they_were() -> None:
    model = nn.ModuleDict({"b": nn.Linear(2, 3), "a": nn.Linear(3, 1)})
    vector = ModelVector(model)
    assert [name for name, _ in vector.layout] == ["a.bias", "a.weight", "b.bias", "b.weight"]
    theta_P = np.arange(vector.num_parameters, dtype=np.float32)
    vector.load_(theta_P)
    assert model["a"].bias.item() == 0.0
    assert model["b"].weight.flatten().tolist() == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    assert (stored(vector) == theta_P).all()
    vector.shift_(theta_P)
    assert (stored(vector) == 2 * theta_P).all()


def test_frozen_parameters_and_buffers_stay_out_and_tied_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    names = [name for name, _ in ModelVector(model).layout]
    assert names == ["0.weight", "1.bias", "1.weight", "2.bias"]


def test_a_wrapped_model_has_the_names_of_the_model_inside() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert ModelVector(nn.DataParallel(model)).layout == ModelVector(model).layout


def test_steps_too_small_for_bf16_add_up() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    vector = ModelVector(model)
    vector.load_(np.float32([1.0]))
    for _ in range(64):
        vector.shift_(np.float32([1 / 1024]))
    assert stored(vector)[0] == np.float32(1.0 + 64 / 1024)
    assert model.weight.item() == 1.0625


def test_what_cannot_be_trained_together_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        ModelVector(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ConfigError, match="weight has no values yet"):
        ModelVector(nn.LazyLinear(2, bias=False))
    with pytest.raises(ConfigError, match="complex64, not of real numbers"):
        ModelVector(nn.Linear(2, 2, bias=False, dtype=torch.complex64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_a_gpu_is_read_and_written_where_it_lies(dtype: torch.dtype) -> None:
    vector = ModelVector(nn.Linear(5, 3, device="cuda", dtype=dtype))
    theta_P = np.linspace(-1, 1, vector.num_parameters, dtype=np.float32)
    vector.load_(theta_P)
    assert (stored(vector) == theta_P).all() and vector.is_finite()
    vector.shift_(theta_P)
    assert (stored(vector) == 2 * theta_P).all()
