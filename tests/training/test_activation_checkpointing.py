"""Blocks that are computed again in the backward pass: the same gradients, less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoonet.errors import ConfigError
from zoonet.training.gradient import BatchGradient
from zoonet.training.models import FlatModel
from zoonet.training.models.base import TrainableModel
from zoonet.training.session import TrainingSession

CPU = torch.device("cpu")
DEEP: dict[str, Any] = {"num_layers": 6, "dropout": 0.2}
LLAMA: dict[str, Any] = {
    "kind": "transformers",
    "hf_config": {
        "model_type": "gpt2",
        "n_layer": 3,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 16,
    },
}


def gradient_of(job: Any, *, is_checkpointed: bool) -> tuple[Tensor, int]:
    """Return grad_P of one batch and the bytes of activations that its forward pass keeps."""
    flat = FlatModel(job.spec, job.num_parameters, CPU)
    flat.load_(job.initial_P)
    flat.model.train()
    if is_checkpointed:
        flat.model.checkpoint_activations()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != flat.theta_P.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = np.random.default_rng(0).integers(0, job.spec.vocab_size, (2, 4, 16))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        BatchGradient(flat.model, flat.grad_P, job.training).backward((ids[0], ids[1]), slot=7)
    return flat.grad_P, sum(kept.values())


@pytest.mark.parametrize(
    ("model", "task"),
    [(DEEP, "causal-lm"), (DEEP | {"kind": "embedding"}, "embedding"), (LLAMA, "causal-lm")],
    ids=["gpt", "embedding", "transformers"],
)
def test_gradients_are_the_same_to_the_bit_with_dropout_and_most_activations_are_let_go(
    make_job: Callable[..., Any], model: dict[str, Any], task: str
) -> None:
    if model.get("kind") == "transformers":
        pytest.importorskip("transformers")
    job = make_job(model, task=task)
    plain_P, plain_bytes = gradient_of(job, is_checkpointed=False)
    again_P, again_bytes = gradient_of(job, is_checkpointed=True)
    assert float(plain_P.norm()) > 0
    assert torch.equal(plain_P, again_P)
    assert again_bytes < plain_bytes / 2


def test_a_job_that_asks_for_it_trains_that_way(make_job: Callable[..., Any]) -> None:
    thetas = []
    for is_asked in (False, True):
        job = make_job({"dropout": 0.1}, activation_checkpointing=is_asked)
        theta_P, inner_N = job.initial_P.copy(), np.empty(2 * job.num_parameters + 1, np.float32)
        with TrainingSession(job.start) as session:
            assert session._flat.model.backbone.is_checkpointing is is_asked  # type: ignore[union-attr]
            session.begin(theta_P, None)
            for slot in range(3):
                session.step(slot, 0.1)
            session.finish_round(theta_P, inner_N)
        thetas.append(theta_P)
    assert not np.array_equal(thetas[0], job.initial_P)
    assert np.array_equal(*thetas)


def test_an_architecture_that_cannot_is_refused_with_the_field_to_change() -> None:
    with pytest.raises(ConfigError, match=r"activation_checkpointing.*leave it false"):
        TrainableModel.checkpoint_activations(TrainableModel())
