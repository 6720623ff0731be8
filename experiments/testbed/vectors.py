"""What peers contribute to a benchmark's round, so that the mean tells who is in it.

Everyone contributes the same noise, plus a tag of its own, plus the round's offset. The mean less
the noise is then the mean of the tags: wrong wherever somebody is missing who should be in it, or
where an earlier round's bytes were delivered.

P = values of the vector, W = windows of it
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
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
    num_fuller_windows: int = 0  # that also hold somebody whom they may, but need not hold

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
    also_allowed: Collection[int] = (),
) -> Judgement:
    """Say where `mean_P` is not the mean of these contributors' vectors of this round.

    A window may also hold any of `also_allowed`: those who were lost after they had sent a part.
    """
    excess_P = mean_P - noise_P
    starts_W = np.arange(0, excess_P.size, WINDOW)
    sizes_W = np.diff(starts_W, append=excess_P.size)
    means_W = np.add.reduceat(excess_P, starts_W, dtype=np.float64) / sizes_W
    offset = offset_of(round_number)
    tolerance_W = np.maximum(WINDOW_TOLERANCE, 4 * value_tolerance / np.sqrt(sizes_W))
    expected_W = np.full(means_W.size, np.nan)
    is_known_W, fuller_W = np.zeros(means_W.size, bool), np.zeros(means_W.size, bool)
    for number, tags in enumerate(_allowed_tags(contributors, also_allowed)):
        expected = sum(tags) / len(tags) + offset
        fits_W = ~is_known_W & (np.abs(means_W - expected) <= tolerance_W)
        expected_W[fits_W | np.isnan(expected_W)] = expected  # who fits nobody is held to the first
        is_known_W |= fits_W
        fuller_W |= fits_W & (number > 0)
    np.subtract(excess_P, np.repeat(expected_W, sizes_W).astype(np.float32), out=excess_P)
    np.abs(excess_P, out=excess_P)
    num_wrong_values = int(excess_P.size - np.count_nonzero(excess_P <= value_tolerance))
    num_wrong_windows = int(np.count_nonzero(~is_known_W))
    return Judgement(num_wrong_windows, num_wrong_values, int(np.count_nonzero(fuller_W)))


def _allowed_tags(
    contributors: Collection[int], also_allowed: Collection[int]
) -> Iterator[list[float]]:
    """Tags of who may be in a window, all contributors alone first."""
    tags = [tag_of(peer) for peer in contributors]
    for count in range(len(also_allowed) + 1):
        for more in itertools.combinations(sorted(also_allowed), count):
            if tags or more:
                yield tags + [tag_of(peer) for peer in more]


def raw(vector: Vector) -> memoryview:
    """The vector's own bytes."""
    return vector.view(np.uint8).data
