"""Throws mutated payloads at every compiled decoder: `python -m tests.codecs.fuzz NUMBER SEED`.

With NUMBA_BOUNDSCHECK=1 any step outside an array is an IndexError, which ends it.
"""

from __future__ import annotations

import sys

import numpy as np

from tests.codecs.chunks import SIZES, encoded, made
from zoonet.codecs import codec

NAMES = ("int8", "e3m0", "topk2", "topk2", "topk2")


def mutated(payload: bytes, random: np.random.Generator) -> bytes:
    """Some bits or bytes changed, and now and then another length."""
    changed = bytearray(payload)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(len(changed)) ** random.choice([1.0, 0.5]))
        if random.random() < 0.7:
            changed[place] ^= 1 << random.integers(8)
        else:
            changed[place : place + 3] = random.bytes(len(changed[place : place + 3]))
    if random.random() < 0.3:
        cut = int(random.integers(1, len(changed) + 1))
        return bytes(changed[:cut])
    if random.random() < 0.1:
        return bytes(changed) + random.bytes(int(random.integers(1, 4)))
    return bytes(changed)


def fuzz(number: int, seed: int) -> tuple[int, int]:
    """Return how many payloads were refused and how many were decoded."""
    random = np.random.default_rng(seed)
    kinds = ("normal", "sparse", "equal", "spread")
    payloads = {
        (name, size): [encoded(codec(name), made(kind, size, seed)) for kind in kinds]
        for name in set(NAMES)
        for size in SIZES
    }
    refused = decoded = 0
    for _ in range(number):
        name, size = NAMES[random.integers(len(NAMES))], SIZES[random.integers(len(SIZES))]
        payload = mutated(payloads[name, size][random.integers(len(kinds))], random)
        out_N = np.zeros(size, np.float32)
        try:
            codec(name).accumulate(payload, np.float32(0.5), out_N, is_first=False)
        except ValueError:
            refused += 1
            assert not out_N.any()
        else:
            decoded += 1
            assert np.isfinite(out_N).all()
    return refused, decoded


if __name__ == "__main__":
    print(*fuzz(int(sys.argv[1]), int(sys.argv[2])))
