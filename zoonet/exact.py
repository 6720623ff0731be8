"""Arithmetic that gives the same bits on every CPU.

Only separate fp32 multiplies and adds, in a fixed order: IEEE 754 leaves no freedom there, while
torch's `add(alpha=)`, `lerp` and SGD give other bits under other CPU capabilities.

N = elements of a vector
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

BLOCK: Final = 1 << 15  # elements worked on at a time, so that they stay in the core's cache


def weighted_mean(
    parts: Sequence[Vector], weights: Sequence[int], *, out: Vector | None = None
) -> Vector:
    """Return the mean of equally long vectors by integer weights (tokens), in the order given.

    acc = w0 * part0, then acc += wi * parti, with wi = fp32(weight_i / total). `out` must not be
    one of the parts.
    """
    if not parts or len(parts) != len(weights):
        raise ValueError(f"{len(parts)} parts and {len(weights)} weights")
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise ValueError(f"weights {list(weights)[:8]} have no positive sum")
    mean = np.empty_like(parts[0]) if out is None else out
    for vector in (*parts, mean):
        require_vector(vector, parts[0].size)
    require_exact_arithmetic()
    shares = [np.float32(weight / total) for weight in weights]
    scratch = np.empty(min(BLOCK, mean.size), np.float32)
    for start in range(0, mean.size, BLOCK):
        block = slice(start, start + BLOCK)
        accumulator = mean[block]
        product = scratch[: accumulator.size]
        np.multiply(parts[0][block], shares[0], out=accumulator)
        for part, share in zip(parts[1:], shares[1:], strict=True):
            np.multiply(part[block], share, out=product)
            np.add(accumulator, product, out=accumulator)
    return mean


def require_exact_arithmetic() -> None:
    """Raise RuntimeError where this thread flushes subnormal numbers to zero.

    A library built with -ffast-math sets that mode for the thread that loads it; results would
    then differ from those of other peers.
    """
    smallest = np.full(1, np.finfo(np.float32).smallest_subnormal, np.float32)
    if not np.multiply(smallest, np.float32(1.0))[0] > 0:
        raise RuntimeError(
            "this process flushes subnormal numbers to zero (a library built with -ffast-math "
            "was loaded), so its results would differ from those of other peers"
        )


def require_vector(vector: Vector, size: int) -> None:
    """Raise ValueError for anything but a fp32 vector of that many elements."""
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise ValueError(f"a {vector.dtype} array of shape {vector.shape}, expected f32 ({size},)")
