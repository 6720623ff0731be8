"""Chunks to encode, and how tests call a codec."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from zoonet.codecs import Codec
from zoonet.exact import Vector

SIZES = (1, 2, 63, 64, 65, 255, 256, 257, 511, 4095, 4096, 4097, 8192, 9001)
KINDS = ("normal", "heavy", "sparse", "zeros", "equal", "tiny", "spread", "ramp", "one")


def made(kind: str, size: int, seed: int, exponent: int = -10) -> Vector:
    """Values of a kind, around 2 ** exponent."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(size)
    match kind:
        case "heavy":
            values = values**5
        case "sparse":
            values *= random.random(size) < 0.01
        case "zeros":
            values *= 0.0
        case "equal":
            values = np.sign(values)
        case "tiny":
            values *= 2.0**-130
        case "spread":
            values *= 2.0 ** random.integers(-40, 0, size)
        case "ramp":
            values = np.arange(size) - size / 3
        case "one":
            values = np.where(np.arange(size) == seed % size, values, 0.0)
    return (values * 2.0**exponent).astype(np.float32)


def chunks(max_exponent: int = 3) -> st.SearchStrategy[Vector]:
    """Chunks of many sizes, shapes of distribution and magnitudes."""
    return st.builds(
        made,
        st.sampled_from(KINDS),
        st.one_of(st.sampled_from(SIZES), st.integers(1, 5000)),
        st.integers(0, 1 << 16),
        st.integers(-60, max_exponent),
    )


def encoded(codec: Codec, values_N: Vector) -> bytes:
    """The payload of a chunk."""
    room = bytearray(codec.max_bytes(values_N.size))
    return bytes(room[: codec.encode(values_N, memoryview(room))])


def decoded(codec: Codec, payload: bytes, size: int) -> Vector:
    """The values of a payload."""
    out_N = np.full(size, np.float32(7))
    codec.decode(payload, out_N)
    return out_N


def bits(values_N: Vector) -> bytes:
    """What to compare where -0.0 is not 0.0."""
    return values_N.tobytes()
