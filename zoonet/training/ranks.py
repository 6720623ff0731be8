"""The processes of one peer that hold one model together, each with a device of its own.

Everything here is collective: all ranks make the same calls in the same order.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor


class Ranks:
    """A process alone: it holds all rows and computes all samples."""

    rank = 0
    size = 1

    def rows(self, num_rows: int) -> slice:
        """The rows of a parameter that this rank holds; none for the last ranks of a short one."""
        most = math.ceil(num_rows / self.size)
        return slice(min(num_rows, self.rank * most), min(num_rows, (self.rank + 1) * most))

    def shares(
        self, num_samples: int, at_a_time: int, *, is_separable: bool
    ) -> Iterator[tuple[slice, int]]:
        """Yield the samples that this rank computes together, and how many of them count.

        Equally often on all ranks: one that has none left computes a sample that does not count.
        A batch that cannot be cut is computed by all and counts once.
        """
        if not is_separable:
            yield slice(0, num_samples), 0 if self.rank else num_samples
            return
        most = math.ceil(num_samples / self.size)
        mine = self.rows(num_samples)
        for offset in range(0, most, at_a_time):
            first = mine.start + offset
            stop = min(mine.stop, first + at_a_time)
            yield (slice(first, stop), stop - first) if first < stop else (slice(0, 1), 0)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks, the same bits on each."""
        return value

    def whole(self, own: Tensor, num_rows: int) -> Tensor:
        """Return a parameter of which this rank holds `own` rows."""
        return own


ALONE = Ranks()


class Group(Ranks):
    """One of several processes on this machine. Nothing outside it can reach them."""

    def __init__(self, rank: int, size: int, device: torch.device, store_path: str) -> None:
        """Wait until all ranks are there; `store_path` is a file that they alone can open."""
        from torch.distributed import FileStore, init_process_group  # type: ignore[attr-defined]
        from torch.distributed.device_mesh import init_device_mesh

        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.rank = rank
        self.size = size
        init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=FileStore(store_path, size),
            rank=rank,
            world_size=size,
        )
        self.mesh = init_device_mesh(device.type, (size,))

    def total(self, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    def whole(self, own: Tensor, num_rows: int) -> Tensor:
        most = math.ceil(num_rows / self.size)
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        gathered = own.new_empty((most * self.size, *own.shape[1:]))
        torch.distributed.all_gather_into_tensor(gathered, padded)
        return gathered[:num_rows]
