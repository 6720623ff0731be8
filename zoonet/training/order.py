"""Which tokens the n-th sample of a job is: a keyed permutation per epoch, in integers only.

Every peer computes the same order from (number of tokens, context, seed), without a table: a
Feistel network over the next power of four, with cycle walking down to the number of samples
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Each epoch also shifts all
windows by a keyed offset, so that their borders fall elsewhere.

B = samples of a batch
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoonet.errors import ConfigError

_NUM_ROUNDS = 7
_DOMAIN = b"zoonet-order/1"
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The order of a job's training samples. Sample i is a window of `context` + 1 tokens.

    Raises ConfigError where the text is too short for a single sample.
    """

    num_tokens: int
    context: int
    seed: int

    def __post_init__(self) -> None:
        if self.context < 1 or self.samples_per_epoch < 1:
            raise ConfigError(
                f"{self.num_tokens} training tokens are too few for a context of {self.context}: "
                f"at least {2 * self.context} are needed"
            )

    @property
    def samples_per_epoch(self) -> int:
        """Windows that fit at every shift of an epoch."""
        return self.num_tokens // self.context - 1

    def starts(self, first_sample: int, num_samples: int) -> NDArray[np.int64]:
        """Return the first token of each of the samples [first, first + num) -> starts_B."""
        if first_sample < 0 or num_samples < 0:
            raise ValueError(f"samples {first_sample} + {num_samples} are negative")
        parts = []
        sample, stop = first_sample, first_sample + num_samples
        while sample < stop:
            epoch, offset = divmod(sample, self.samples_per_epoch)
            num = min(stop - sample, self.samples_per_epoch - offset)
            parts.append(self._epoch_starts(epoch, offset, num))
            sample += num
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def slot_starts(self, slot: int, batch_size: int) -> NDArray[np.int64]:
        """Return starts_B of a slot: samples [slot * batch_size, (slot + 1) * batch_size)."""
        return self.starts(slot * batch_size, batch_size)

    def _epoch_starts(self, epoch: int, offset: int, num: int) -> NDArray[np.int64]:
        keys = epoch_keys(self.seed, epoch)
        positions = np.arange(offset, offset + num, dtype=np.uint64)
        windows = permute(positions, self.samples_per_epoch, keys[:_NUM_ROUNDS])
        shift = int(keys[_NUM_ROUNDS]) % self.context
        return windows.astype(np.int64) * self.context + shift


def epoch_keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Return the eight 64-bit keys of an epoch: seven for the rounds, one for the shift."""
    digest = hashlib.blake2b(_DOMAIN + struct.pack("<qQ", seed, epoch), digest_size=64).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def permute(
    positions: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Map positions in [0, size) one to one onto [0, size)."""
    half_bits = np.uint64(((size - 1).bit_length() + 1) // 2)
    permuted = _feistel(positions, half_bits, keys)
    outside = np.flatnonzero(permuted >= size)
    while outside.size:
        permuted[outside] = _feistel(permuted[outside], half_bits, keys)
        outside = outside[permuted[outside] >= size]
    return permuted


def _feistel(
    values: NDArray[np.uint64], half_bits: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finish as splitmix64 does (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
