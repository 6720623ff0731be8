"""What peers contribute to a benchmark's round, so that the mean tells who is in it.

Everyone contributes the same noise, plus a tag of its own, plus the round's offset. The mean less
the noise is then the mean of the tags: wrong wherever somebody is missing who should be in it, or
where an earlier round's bytes were delivered.

P = values of the vector, W = windows of it
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np

from zoonet.exact import Vector

WINDOW: Final = 4096
WINDOW_TOLERANCE: Final = 0.02
EXACT_TOLERANCE: Final = 2e-3  # of one value, where nothing is quantised
_SEED: Final = 20_117


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with a mean: how many windows and how many values are not what they should."""

    num_wrong_windows: int
    num_wrong_values: int

    @property
    def is_right(self) -> bool:
        """Whether this is the mean of exactly those who were said to be in it."""
        return self.num_wrong_windows == 0 and self.num_wrong_values == 0


def noise(num_values: int) -> Vector:
    """Return what all contributions have in common (P,)."""
    return np.random.default_rng(_SEED).standard_normal(num_values, dtype=np.float32)


def tag_of(peer: int) -> float:
    """The peer's own summand: 1, -2, 3, -4, ... so that leaving one out always shows."""
    return float((peer + 1) * (1 if peer % 2 == 0 else -1))


def offset_of(round_number: int) -> float:
    """The round's own summand."""
    return float(round_number % 16)


def fill_(contribution_P: Vector, noise_P: Vector, peer: int, round_number: int) -> None:
    """Write what the peer contributes to the round."""
    np.add(noise_P, np.float32(tag_of(peer) + offset_of(round_number)), out=contribution_P)


def judge(
    mean_P: Vector,
    noise_P: Vector,
    contributors: Collection[int],
    round_number: int,
    value_tolerance: float = EXACT_TOLERANCE,
) -> Judgement:
    """Say where `mean_P` is not the mean of these contributors' vectors of this round."""
    tags = [tag_of(peer) for peer in contributors]
    expected = sum(tags) / len(tags) + offset_of(round_number) if tags else float("nan")
    excess_P = mean_P - noise_P
    np.subtract(excess_P, np.float32(expected), out=excess_P)
    sums_W = np.add.reduceat(excess_P, np.arange(0, excess_P.size, WINDOW), dtype=np.float64)
    sizes_W = np.full(sums_W.size, WINDOW)
    sizes_W[-1] = excess_P.size - WINDOW * (sums_W.size - 1)
    off_W = ~(np.abs(sums_W / sizes_W) <= WINDOW_TOLERANCE)
    np.abs(excess_P, out=excess_P)
    num_wrong_values = int(excess_P.size - np.count_nonzero(excess_P <= value_tolerance))
    return Judgement(int(np.count_nonzero(off_W)), num_wrong_values)


def raw(vector: Vector) -> memoryview:
    """The vector's own bytes."""
    return vector.view(np.uint8).data
