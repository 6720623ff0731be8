from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoonet.config import TrainingConfig
from zoonet.training.inner import InnerOptimizer, learning_rate, orthogonalised
from zoonet.training.models import FlatModel, hidden_matrices

CPU = torch.device("cpu")


def optimizer_of(job: Any) -> tuple[FlatModel, InnerOptimizer]:
    flat = FlatModel(job.spec, job.num_parameters, CPU)
    flat.load_(job.initial_P)
    hidden = hidden_matrices(flat.model, job.spec.vocab_size)
    return flat, InnerOptimizer(flat, job.training, hidden)


def test_adamw_is_the_adamw_of_torch(make_job: Callable[..., Any]) -> None:
    job = make_job(weight_decay=0.3, grad_clip=1.0)
    flat, optimizer = optimizer_of(job)
    twin = FlatModel(job.spec, job.num_parameters, CPU)
    twin.load_(job.initial_P)
    parameters = list(twin.model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(20):
        gradient_P = torch.randn(job.num_parameters, generator=torch.Generator().manual_seed(step))
        flat.grad_P.copy_(gradient_P)
        twin.grad_P.copy_(gradient_P)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in reference.param_groups:
            group["lr"] = 1e-3 * (step + 1)
        reference.step()
        optimizer.step_(1e-3 * (step + 1))
    torch.testing.assert_close(flat.theta_P, twin.theta_P, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_mirrored_state_goes_on_as_if_nothing_had_happened(
    make_job: Callable[..., Any], kind: str
) -> None:
    job = make_job(optimizer=kind)
    flat, optimizer = optimizer_of(job)
    inner_N = np.empty(2 * job.num_parameters + 1, np.float32)
    for step in range(6):
        if step == 3:
            theta_P = flat.theta_P.clone()
            optimizer.store(inner_N)
        flat.grad_P.copy_(torch.sin(torch.arange(job.num_parameters) * (step + 1.0)))
        optimizer.step_(1e-3)
    fresh_flat, fresh = optimizer_of(job)
    fresh.load_(inner_N)
    fresh_flat.theta_P.copy_(theta_P)
    for step in range(3, 6):
        fresh_flat.grad_P.copy_(torch.sin(torch.arange(job.num_parameters) * (step + 1.0)))
        fresh.step_(1e-3)
    assert inner_N[-1] == 3
    assert torch.equal(fresh_flat.theta_P, flat.theta_P)


def test_a_gradient_is_clipped_to_its_norm_and_a_small_one_is_left(
    make_job: Callable[..., Any],
) -> None:
    flat, optimizer = optimizer_of(make_job(grad_clip=0.5))
    for norm, expected in ((3.0, 0.5), (0.25, 0.25)):
        flat.grad_P.fill_(norm / math.sqrt(flat.grad_P.numel()))
        optimizer.step_(1e-3)
        assert float(flat.grad_P.norm()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("inner_N", [np.zeros(3, np.float32), None])
def test_a_state_of_another_shape_or_age_is_refused(job: Any, inner_N: Any) -> None:
    _, optimizer = optimizer_of(job)
    if inner_N is None:
        inner_N = np.full(2 * job.num_parameters + 1, np.nan, np.float32)
    with pytest.raises(ValueError, match="inner state"):
        optimizer.load_(inner_N)


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 64)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = orthogonalised(matrix, torch.float32)
    assert update.shape == matrix.shape
    singular = torch.linalg.svdvals(update)
    assert float(singular.max()) < 1.3
    assert float(singular.median()) > 0.6


def test_muon_steps_hidden_matrices_only(make_job: Callable[..., Any]) -> None:
    job = make_job(optimizer="muon")
    flat, _ = optimizer_of(job)
    hidden = hidden_matrices(flat.model, job.spec.vocab_size)
    assert len(hidden) == 4 * job.spec.num_layers
    assert all(".blocks." in name for name in hidden)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    spec = TrainingConfig(tokens=1, inner_lr=2e-3, warmup_fraction=0.1, min_lr_fraction=0.1)
    assert learning_rate(0.0, spec) == 0.0
    assert learning_rate(0.05, spec) == pytest.approx(1e-3)
    assert learning_rate(0.1, spec) == pytest.approx(2e-3)
    assert learning_rate(0.55, spec) == pytest.approx(1.1e-3)
    assert learning_rate(1.0, spec) == pytest.approx(2e-4)
    assert learning_rate(7.0, spec) == learning_rate(1.0, spec)


@given(
    progress=st.floats(0, 1),
    warmup=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_the_learning_rate_never_leaves_its_bounds(
    progress: float, warmup: float, floor: float
) -> None:
    spec = TrainingConfig(tokens=1, inner_lr=1.0, warmup_fraction=warmup, min_lr_fraction=floor)
    assert 0 <= learning_rate(progress, spec) <= 1.0 + 1e-12
    if progress >= warmup:
        assert learning_rate(progress, spec) >= floor - 1e-12
