"""Which samples a slot of a run is, and how they become a batch.

B = samples of a slot
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def default_collate() -> Collate:
    """What a `DataLoader` does: tensors of numbers and arrays, structures of these as they are."""
    from torch.utils.data import default_collate as collate

    return collate
