"""Which samples a slot of a run is, and how they become a batch.

B = samples of a slot
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoonet.training.order import epoch_keys, permute

Collate = Callable[[list[Any]], Any]


class Dataset(Protocol):
    """Anything with a length and an item for each index below it, such as a map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class SlotOrder:
    """One keyed permutation of the dataset an epoch; slots follow each other across epochs."""

    num_samples: int
    batch_size: int
    seed: int

    def indices(self, slot: int) -> NDArray[np.int64]:
        """The samples of a slot -> indices_B, the same ones for every peer."""
        sample, stop = slot * self.batch_size, (slot + 1) * self.batch_size
        parts = []
        while sample < stop:
            epoch, offset = divmod(sample, self.num_samples)
            num = min(stop - sample, self.num_samples - offset)
            positions = np.arange(offset, offset + num, dtype=np.uint64)
            parts.append(permute(positions, self.num_samples, epoch_keys(self.seed, epoch)[:7]))
            sample += num
        return np.concatenate(parts).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a dataset, by slot."""

    dataset: Dataset
    order: SlotOrder
    collate: Collate

    def of(self, slot: int) -> Any:
        """The batch of a slot, as `collate` makes it of its samples."""
        return self.collate([self.dataset[int(index)] for index in self.order.indices(slot)])


class Loader:
    """Makes batches ahead of time, in threads. Its methods belong to one thread."""

    def __init__(self, batches: Batches, num_workers: int) -> None:
        """With no worker each batch is made when it is asked for."""
        self._batches = batches
        self._num_ahead = 2 * num_workers
        self._workers = ThreadPoolExecutor(num_workers, "zoonet-batch") if num_workers else None
        self._made: dict[int, Future[Any]] = {}

    def take(self, slot: int, next_slots: Iterable[int]) -> Any:
        """Return the batch of a slot, and begin with those that are likely to be asked for next.

        Raises whatever the dataset or `collate` raises.
        """
        if self._workers is None:
            return self._batches.of(slot)
        found = self._made.pop(slot, None) or self._workers.submit(self._batches.of, slot)
        ahead = list(islice(next_slots, self._num_ahead))
        for stale in self._made.keys() - set(ahead):
            self._made.pop(stale).cancel()
        for each in ahead:
            if each not in self._made:
                self._made[each] = self._workers.submit(self._batches.of, each)
        return found.result()

    def close(self) -> None:
        """Make no more of them."""
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)


def default_collate() -> Collate:
    """What a `DataLoader` does: tensors of numbers and arrays, structures of these as they are."""
    from torch.utils.data import default_collate as collate

    return collate
