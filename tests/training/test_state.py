from __future__ import annotations

import hashlib

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from zoonet.training import state

CHUNK = state.CHUNK_BYTES // 4


@pytest.mark.parametrize(("size", "num"), [(1, 2), (CHUNK, 2), (CHUNK + 1, 4), (5 * CHUNK, 10)])
def test_theta_and_momentum_are_cut_into_chunks_of_a_mebibyte(size: int, num: int) -> None:
    theta_P, momentum_P = np.zeros(size, np.float32), np.ones(size, np.float32)
    chunks = [state.chunk(theta_P, momentum_P, index) for index in range(num)]
    assert state.num_chunks(size) == num == len(state.chunk_digests(theta_P, momentum_P))
    assert np.array_equal(np.concatenate(chunks[: num // 2]), theta_P)
    assert np.array_equal(np.concatenate(chunks[num // 2 :]), momentum_P)
    for index in (-1, num):
        with pytest.raises(IndexError):
            state.chunk(theta_P, momentum_P, index)


def test_the_root_is_the_digest_of_the_chunks_digests() -> None:
    theta_P = np.arange(CHUNK + 3, dtype=np.float32)
    raw, zeros = theta_P.tobytes(), bytes(4 * theta_P.size)
    parts = [raw[: 1 << 18], raw[1 << 18 :], zeros[: 1 << 18], zeros[1 << 18 :]]
    expected = blake3(b"".join(blake3(part).digest() for part in parts)).digest()
    assert state.state_digest(theta_P, np.zeros_like(theta_P)) == expected


@given(index=st.integers(0, 99), bit=st.integers(0, 31), is_momentum=st.booleans())
def test_a_single_flipped_bit_changes_the_digest(index: int, bit: int, is_momentum: bool) -> None:
    vectors = np.zeros((2, 100), np.float32)
    before = state.state_digest(*vectors)
    vectors[int(is_momentum)].view(np.uint32)[index] ^= np.uint32(1 << bit)
    assert state.state_digest(*vectors) != before


def test_theta_and_momentum_are_not_interchangeable() -> None:
    ones, zeros = np.ones(7, np.float32), np.zeros(7, np.float32)
    assert state.state_digest(ones, zeros) != state.state_digest(zeros, ones)


def test_digests_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        state.root_digest([hashlib.sha1(b"").digest()])


def test_vectors_of_unlike_shape_or_type_are_refused() -> None:
    for wrong in (np.zeros(4, np.float32), np.zeros(3)):
        with pytest.raises(ValueError, match="array of shape"):
            state.state_digest(np.zeros(3, np.float32), wrong)
