"""Gradient and loss of one batch, in as many micro-batches as the device's memory asks for.

B = samples, T = tokens, P = flat parameters
"""

from __future__ import annotations

import hashlib
import logging
import struct

import torch
from torch import Tensor

from zoonet.config import TrainingSpec
from zoonet.training.compiler import Loss
from zoonet.training.memory import memory_error
from zoonet.training.models.base import TrainableModel
from zoonet.training.ranks import ALONE, Ranks
from zoonet.training.tokens import Batch

log = logging.getLogger(__name__)


class BatchGradient:
    """Fills `grad_P`, which the gradients of the model's parameters are views of."""

    def __init__(
        self, model: TrainableModel, grad_P: Tensor, spec: TrainingSpec, ranks: Ranks = ALONE
    ) -> None:
        self._ranks = ranks
        self._model = model
        self._grad_P = grad_P
        self._spec = spec
        self.loss_of: Loss = model  # may be replaced by one that computes the same faster
        self.micro_batch_size = spec.batch_size

    def backward(self, batch: Batch, slot: int) -> Tensor:
        """Fill `grad_P` with the mean gradient of the batch and return its mean loss ().

        Where memory runs out, micro-batches become smaller for good; the batch stays the same.
        Raises OutOfDeviceMemory where it cannot be cut further, and on one rank of several: the
        others are in the middle of the step. There the loss is such that the ranks' mean counts.
        """
        while True:
            size = self.micro_batch_size
            try:
                return self._accumulate(batch, slot)
            except (RuntimeError, MemoryError) as error:
                failure = memory_error(error, f"a micro-batch of {size} samples")
                is_cuttable = self._model.is_batch_separable and self._ranks.size == 1
                if size == 1 or not is_cuttable:
                    raise failure from error
            self.micro_batch_size = (size + 1) // 2
            log.warning("memory ran out: samples at a time=%d from now on", self.micro_batch_size)
            _let_go(self._grad_P.device)

    def _accumulate(self, batch: Batch, slot: int) -> Tensor:
        self._grad_P.zero_()
        if self._model.is_random:
            torch.manual_seed(slot_seed(self._spec.seed, slot) + self._ranks.rank)
        device = self._grad_P.device
        loss_sum = torch.zeros((), device=device)
        num_samples = len(batch[0])
        shares = self._ranks.shares(
            num_samples, self.micro_batch_size, is_separable=self._model.is_batch_separable
        )
        for micro, num_counted in shares:
            x_BT, y_BT = (torch.from_numpy(part[micro]).to(device) for part in batch)
            with autocast(self._spec, device):
                loss = self.loss_of(x_BT, y_BT)
            num_counted *= self._ranks.size  # whose gradients' mean is taken
            if num_counted != num_samples:
                loss = loss * (num_counted / num_samples)
            loss.backward()
            loss_sum += loss.detach()
        return loss_sum


class BatchLoss:
    """The mean loss of a batch without a gradient, in as many parts as memory asks for."""

    def __init__(
        self,
        model: TrainableModel,
        device: torch.device,
        spec: TrainingSpec,
        ranks: Ranks = ALONE,
        most_samples: int = 0,
    ) -> None:
        self._model = model
        self._device = device
        self._spec = spec
        self._ranks = ranks
        self._most_samples = most_samples  # at a time; 0: no limit has been met

    @torch.no_grad()
    def of(self, batch: Batch) -> float:
        """Mean loss of a batch. Raises OutOfDeviceMemory where it cannot be cut further."""
        num_samples = len(batch[0])
        while True:
            size = min(num_samples, self._most_samples or num_samples)
            try:
                return self._sum(batch, size) / num_samples
            except (RuntimeError, MemoryError) as error:
                failure = memory_error(error, f"the loss of {size} samples")
                is_cuttable = self._model.is_batch_separable and self._ranks.size == 1
                if size == 1 or not is_cuttable:
                    raise failure from error
            self._most_samples = (size + 1) // 2
            _let_go(self._device)

    def _sum(self, batch: Batch, size: int) -> float:
        """The sum of the samples' losses, the same bits on all ranks."""
        total = 0.0
        is_separable = self._model.is_batch_separable
        for part, num_counted in self._ranks.shares(len(batch[0]), size, is_separable=is_separable):
            x_BT, y_BT = (torch.from_numpy(side[part]).to(self._device) for side in batch)
            with autocast(self._spec, self._device):
                total += float(self._model(x_BT, y_BT)) * num_counted
        if self._ranks.size == 1:
            return total
        return self._ranks.total(torch.tensor(total, device=self._device)).item()


def _let_go(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory: its pieces may be of the wrong size."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def autocast(spec: TrainingSpec, device: torch.device) -> torch.autocast:
    """Mixed precision, bf16, on CUDA devices. A CPU stays in fp32: there bf16 is slower."""
    is_mixed = spec.precision == "bf16" and device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16, enabled=is_mixed)


def slot_seed(seed: int, slot: int) -> int:
    """Return the 63-bit seed of a slot's random numbers: a replay draws the same ones."""
    digest = hashlib.blake2b(b"zoonet-slot/1" + struct.pack("<qq", seed, slot), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
