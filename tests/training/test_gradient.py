from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoonet.config import TrainingConfig
from zoonet.errors import OutOfDeviceMemory
from zoonet.training.gradient import BatchGradient, BatchLoss, autocast, slot_seed
from zoonet.training.memory import is_memory_error, memory_errors_told
from zoonet.training.models.base import TrainableModel
from zoonet.training.ranks import Ranks

SEEDS = [2034360545866830968, 8909348466055004667]
SPEC = TrainingConfig(tokens=1, batch_size=6)


class LinearModel(TrainableModel):
    """Has room for so many samples at a time."""

    def __init__(self, room: int, *, is_random: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.weight.grad = torch.zeros(3)
        self.room = room
        self.is_random = is_random
        self.seen: list[int] = []

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        self.seen.append(len(x_BT))
        if len(x_BT) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        noise = torch.rand(3) if self.is_random else torch.ones(3)
        return ((x_BT @ (self.weight * noise) - y_BT[:, 0]) ** 2).mean()


def gradient_of(model: LinearModel, slot: int = 0) -> tuple[float, Tensor]:
    rng = np.random.default_rng(0)
    batch: Any = (rng.random((6, 3), np.float32), rng.random((6, 3), np.float32))
    assert model.weight.grad is not None
    loss = BatchGradient(model, model.weight.grad, SPEC).backward(batch, slot)
    return float(loss), model.weight.grad.clone()


@pytest.mark.parametrize("room", [1, 2, 4, 5])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_gradient(room: int) -> None:
    whole_loss, whole = gradient_of(LinearModel(6))
    model = LinearModel(room)
    loss, gradient = gradient_of(model)
    assert loss == pytest.approx(whole_loss)
    torch.testing.assert_close(gradient, whole)
    assert max(model.seen[-2:]) <= room


def test_the_smaller_micro_batch_is_kept_for_later_steps() -> None:
    model = LinearModel(3)
    assert model.weight.grad is not None
    gradient = BatchGradient(model, model.weight.grad, SPEC)
    batch: Any = (np.ones((6, 3), np.float32), np.ones((6, 3), np.float32))
    gradient.backward(batch, 0)
    gradient.backward(batch, 1)
    assert model.seen == [6, 3, 3, 3, 3]


def test_a_sample_that_does_not_fit_is_out_of_memory() -> None:
    with pytest.raises(OutOfDeviceMemory, match="1 samples"):
        gradient_of(LinearModel(0))


def test_a_loss_over_the_whole_batch_is_never_cut() -> None:
    model = LinearModel(3)
    model.is_batch_separable = False
    with pytest.raises(OutOfDeviceMemory, match="6 samples"):
        gradient_of(model)


def loss_of(model: LinearModel, num_samples: int = 6) -> BatchLoss:
    loss = BatchLoss(model, torch.device("cpu"), SPEC)
    rng = np.random.default_rng(0)
    samples: Any = tuple(rng.random((2, num_samples, 3), np.float32))
    whole = BatchLoss(LinearModel(num_samples), torch.device("cpu"), SPEC).of(samples)
    assert loss.of(samples) == pytest.approx(whole)
    assert loss.of(samples) == pytest.approx(whole)
    return loss


@pytest.mark.parametrize(("room", "sizes"), [(1, [6, 3, 2]), (3, [6]), (4, [6]), (6, [])])
def test_an_evaluation_that_does_not_fit_is_cut_once_and_tells_the_same_loss(
    room: int, sizes: list[int]
) -> None:
    model = LinearModel(room)
    loss_of(model)
    assert [size for size in model.seen if size > room] == sizes


def test_an_evaluation_of_one_sample_that_does_not_fit_is_out_of_memory() -> None:
    with pytest.raises(OutOfDeviceMemory, match="1 samples"):
        loss_of(LinearModel(0))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("could not create a primitive"),
        MemoryError("Unable to allocate 9.00 GiB for an array"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_becomes_one_error(error: Exception) -> None:
    named = pytest.raises(OutOfDeviceMemory, match="too little memory for a step")
    with named as caught, memory_errors_told("a step"):
        raise error
    assert caught.value.__cause__ is error
    assert not is_memory_error(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("at_a_time", [1, 2, 6])
@pytest.mark.parametrize("num_samples", [1, 3, 6])
def test_ranks_share_a_batch_so_that_each_sample_counts_once_and_all_take_as_many_turns(
    size: int, at_a_time: int, num_samples: int
) -> None:
    turns = []
    counted: list[int] = []
    for rank in range(size):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        shares = list(ranks.shares(num_samples, at_a_time, is_separable=True))
        turns.append(len(shares))
        assert all(0 < share.stop - share.start <= at_a_time for share, _ in shares)
        counted += [i for share, count in shares if count for i in range(num_samples)[share]]
        whole = list(ranks.shares(num_samples, at_a_time, is_separable=False))
        assert whole == [(slice(0, num_samples), 0 if rank else num_samples)]
    assert len(set(turns)) == 1
    assert counted == list(range(num_samples))


def test_a_rank_that_has_too_little_memory_does_not_go_on_alone() -> None:
    ranks = Ranks()
    ranks.size = 2
    model = LinearModel(1)
    assert model.weight.grad is not None
    gradient = BatchGradient(model, model.weight.grad, SPEC, ranks)
    batch: Any = (np.ones((6, 3), np.float32), np.ones((6, 3), np.float32))
    with pytest.raises(OutOfDeviceMemory, match="6 samples"):
        gradient.backward(batch, 0)
    assert len(model.seen) == 1


def test_any_other_error_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(LinearModel):
        def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        gradient_of(Broken(6))


def test_a_job_in_bf16_is_computed_in_fp32_on_a_cpu() -> None:
    mixed = TrainingConfig(tokens=1, precision="bf16")
    with autocast(mixed, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_random_numbers_are_keyed_by_the_slot_and_can_be_replayed() -> None:
    losses = [gradient_of(LinearModel(6, is_random=True), slot)[0] for slot in (4, 5, 4)]
    assert losses[0] == losses[2] != losses[1]


def test_seeds_of_slots_never_change_between_versions() -> None:
    assert [slot_seed(1337, slot) for slot in (0, 1)] == SEEDS
    assert slot_seed(1338, 0) != SEEDS[0]
