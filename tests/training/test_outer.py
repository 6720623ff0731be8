from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoonet.exact import weighted_mean
from zoonet.training.outer import outer_step


def test_the_outer_step_is_the_nesterov_step_of_torch(rng: np.random.Generator) -> None:
    size = 70_000
    theta_P = rng.standard_normal(size, np.float32)
    momentum_P = np.zeros(size, np.float32)
    reference = torch.nn.Parameter(torch.from_numpy(theta_P.copy()))
    sgd = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(5):
        gradient_P = rng.standard_normal(size, np.float32)
        reference.grad = torch.from_numpy(gradient_P)
        sgd.step()
        theta_P, momentum_P = outer_step(theta_P, momentum_P, gradient_P, lr=0.7, momentum=0.9)
    np.testing.assert_allclose(theta_P, reference.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_outer_step_may_write_over_its_inputs(rng: np.random.Generator) -> None:
    theta_P, momentum_P, gradient_P = rng.standard_normal((3, 40_000), np.float32)
    expected = outer_step(theta_P, momentum_P, gradient_P, lr=0.7, momentum=0.9)
    outer_step(theta_P, momentum_P, gradient_P, lr=0.7, momentum=0.9, out=(theta_P, momentum_P))
    assert np.array_equal(theta_P, expected[0])
    assert np.array_equal(momentum_P, expected[1])


@given(
    size=st.integers(1, 70_000),
    weights=st.lists(st.integers(0, 10**12), min_size=1, max_size=5).filter(sum),
)
def test_the_mean_weighs_by_tokens(size: int, weights: list[int]) -> None:
    parts = np.random.default_rng(size).standard_normal((len(weights), size), np.float32)
    expected = np.average(parts.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(weighted_mean(list(parts), weights), expected, atol=1e-5)


def test_the_mean_of_one_part_is_the_part(rng: np.random.Generator) -> None:
    part_P = rng.standard_normal(100, np.float32)
    assert np.array_equal(weighted_mean([part_P], [192]), part_P)


def test_the_mean_adds_in_the_order_given() -> None:
    big, small = np.full(1, 1e8, np.float32), np.full(1, 1.0, np.float32)
    assert weighted_mean([big, -big, small], [1, 1, 1]) > 0
    assert weighted_mean([big, small, -big], [1, 1, 1]) == 0


@pytest.mark.parametrize("weights", [[], [1], [0, 0], [2, -1]])
def test_weights_without_a_mean_are_refused(weights: list[int]) -> None:
    parts = [np.ones(3, np.float32)] * 2
    with pytest.raises(ValueError, match="weights"):
        weighted_mean(parts, weights)


def test_other_dtypes_and_lengths_are_refused() -> None:
    right, wide, long = np.ones(3, np.float32), np.ones(3), np.ones(4, np.float32)
    for wrong in (wide, long):
        with pytest.raises(ValueError, match="expected f32"):
            outer_step(right, wrong, right, lr=0.7, momentum=0.9)
        with pytest.raises(ValueError, match="expected f32"):
            weighted_mean([right, wrong], [1, 1])
