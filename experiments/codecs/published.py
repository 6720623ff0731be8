"""SparseLoCo's own code for comparison: top 64 of 4096, 12 bits a place, 2 bits a value.

Its four values are, here, the best ones for the whole vector (Lloyd's method), which is at least as
good as any table that the published code could choose. Their bytes are not counted, as there.
"""

from __future__ import annotations

import numpy as np

from zoonet.exact import Vector

BLOCK = 4096
PLACES = 64
BITS_PER_SENT_VALUE = 12 + 2


def quantised(wanted_P: Vector) -> tuple[Vector, float]:
    """Return what is sent of a vector and how many bytes that takes."""
    decoded_P = np.zeros_like(wanted_P)
    places = np.concatenate(
        [
            start + largest(wanted_P[start : start + BLOCK])
            for start in range(0, wanted_P.size, BLOCK)
        ]
    )
    sent = wanted_P[places]
    levels = best_levels(sent)
    decoded_P[places] = levels[np.abs(sent[:, None] - levels).argmin(axis=1)]
    return decoded_P, places.size * BITS_PER_SENT_VALUE / 8


def largest(values: Vector) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Places of the largest 1/64 by magnitude."""
    count = -(-values.size // PLACES)
    return np.argsort(-np.abs(values), kind="stable")[:count]


def best_levels(sent: Vector) -> Vector:
    """Four levels that stand for the values with the least squared error, nearly."""
    levels = np.quantile(sent, [0.05, 0.3, 0.7, 0.95]).astype(np.float32)
    for _ in range(30):
        nearest = np.abs(sent[:, None] - levels).argmin(axis=1)
        for level in range(4):
            if (nearest == level).any():
                levels[level] = sent[nearest == level].mean()
    return levels
