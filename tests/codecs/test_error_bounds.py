"""How far from the values what is decoded may be, codec by codec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.codecs.chunks import bits, chunks, decoded, encoded, made
from zoonet.codecs import codec
from zoonet.exact import Vector

BLOCK = 256


def through(name: str, values_N: Vector) -> Vector:
    one = codec(name)
    return decoded(one, encoded(one, values_N), values_N.size)


def blocks(values_N: Vector, size: int) -> list[Vector]:
    return [values_N[start : start + size] for start in range(0, values_N.size, size)]


def tops(values_N: Vector) -> np.ndarray:
    """The largest magnitude of the block of each value."""
    return np.concatenate(
        [np.full(b.size, np.abs(b).max(), float) for b in blocks(values_N, BLOCK)]
    )


def error(values_N: Vector, decoded_N: Vector) -> np.ndarray:
    return np.abs(decoded_N.astype(float) - values_N)


any_floats = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-65504, 65504, width=32, allow_subnormal=True),
)


@given(values_N=st.one_of(chunks(60), any_floats))
def test_fp32_keeps_every_bit(values_N: Vector) -> None:
    assert bits(through("fp32", values_N)) == bits(values_N)


@given(values_N=st.one_of(chunks(), any_floats))
def test_fp16_rounds_as_torch_and_ieee_do(values_N: Vector) -> None:
    decoded_N = through("fp16", values_N)
    assert bits(decoded_N) == bits(values_N.astype(np.float16).astype(np.float32))
    assert (error(values_N, decoded_N) <= np.maximum(np.abs(values_N) * 2.0**-11, 2.0**-25)).all()


@given(values_N=st.one_of(chunks(60), any_floats))
def test_bf16_keeps_eight_bits_at_every_magnitude(values_N: Vector) -> None:
    decoded_N = through("bf16", values_N)
    bound = np.maximum(np.abs(values_N.astype(float)) * 2.0**-8, 2.0**-134)
    assert (error(values_N, decoded_N) <= bound).all()
    assert (np.signbit(decoded_N) == np.signbit(values_N)).all()


@pytest.mark.parametrize(("bits_", "rounded"), [(0x3F80_8000, 0x3F80), (0x3F81_8000, 0x3F82)])
def test_bf16_rounds_half_to_even(bits_: int, rounded: int) -> None:
    values_N = np.array([bits_], np.uint32).view(np.float32)
    assert encoded(codec("bf16"), values_N) == rounded.to_bytes(2, "little")


@given(values_N=st.one_of(chunks(60), any_floats))
@example(values_N=np.float32([2.0**-100, -(2.0**-101), 0]))
def test_int8_errs_by_half_a_scale(values_N: Vector) -> None:
    decoded_N = through("int8", values_N)
    bound = np.maximum(tops(values_N) / 127 / 2 * (1 + 2.0**-7) * (1 + 2.0**-16), 2.0**-100)
    assert (error(values_N, decoded_N) <= bound).all()


@given(values_N=st.one_of(chunks(60), any_floats))
@example(values_N=np.float32([2.0**-100, -(2.0**-101), 0]))
def test_e3m0_errs_by_a_third_or_by_a_little_of_the_largest(values_N: Vector) -> None:
    decoded_N = through("e3m0", values_N)
    bound = np.maximum(np.abs(values_N.astype(float)) / 3, tops(values_N) / 96)
    assert (error(values_N, decoded_N) <= np.maximum(bound, 2.0**-100) * (1 + 1e-6)).all()


@given(values_N=st.one_of(chunks(60), any_floats))
def test_topk2_sends_the_largest_of_each_block_with_their_signs(values_N: Vector) -> None:
    decoded_N = through("topk2", values_N)
    loudest = np.abs(values_N).max()
    for values, sent in zip(blocks(values_N, 4096), blocks(decoded_N, 4096), strict=True):
        places = np.flatnonzero(sent)
        order = np.argsort(-np.abs(values), kind="stable")[: -(-values.size // 64)]
        expected = np.sort(order[np.abs(values[order]) >= 2.0**-100])
        if places.size or np.abs(values).max() > loudest * 2.0**-25:
            assert places.tolist() == expected.tolist()
        assert (np.sign(sent[places]) == np.sign(values[places])).all()
        assert len(np.unique(np.abs(sent[places]))) <= 2
        lost = np.square(sent.astype(float) - values).sum()
        assert lost <= np.square(values.astype(float)).sum()


def test_topk2_keeps_more_of_a_vector_than_one_level_would() -> None:
    values_N = made("heavy", 8 * 4096, 3)
    decoded_N = through("topk2", values_N).astype(float)
    places = np.flatnonzero(decoded_N)
    one_level = np.zeros_like(decoded_N)
    for start in range(0, values_N.size, 4096):
        inside = places[(places >= start) & (places < start + 4096)]
        one_level[inside] = np.sign(values_N[inside]) * np.abs(values_N[inside]).mean()
    assert np.square(decoded_N - values_N).sum() < 0.8 * np.square(one_level - values_N).sum()


def test_topk2_takes_two_thirds_of_the_published_bytes() -> None:
    values_N = made("normal", 64 * 4096, 3)
    num_bytes = len(encoded(codec("topk2"), values_N))
    assert num_bytes / values_N.size / 30 <= 0.00062
    assert num_bytes < 0.69 * values_N.size / 64 * 14 / 8


@given(seed=st.integers(0, 100), k=st.integers(1, 4))
def test_topk2_fits_however_unevenly_the_largest_lie(seed: int, k: int) -> None:
    values_N = made("normal", k * 4096, seed)
    start = seed * 37 % (values_N.size - 100)
    values_N[start : start + 64] += 100  # all in one place
    assert len(encoded(codec("topk2"), values_N)) <= codec("topk2").max_bytes(values_N.size)
