"""The bytes are those that the description of each format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings

from tests.codecs import references
from tests.codecs.chunks import KINDS, chunks, encoded, made
from zoonet.codecs import codec
from zoonet.exact import Vector

TIES = np.float32([1.5, 0.75, -0.75, 1.0, 2**-7, -(2**-7), 0.011, 127.5, -0.0])


@settings(max_examples=60)
@given(values_N=chunks(60))
@example(values_N=TIES)
def test_int8(values_N: Vector) -> None:
    assert encoded(codec("int8"), values_N) == references.int8(values_N)


@settings(max_examples=60)
@given(values_N=chunks(60))
@example(values_N=TIES)
def test_e3m0(values_N: Vector) -> None:
    assert encoded(codec("e3m0"), values_N) == references.e3m0(values_N)


@settings(max_examples=60)
@given(values_N=chunks(60))
@example(values_N=TIES)
def test_topk2(values_N: Vector) -> None:
    assert encoded(codec("topk2"), values_N) == references.topk2(values_N)


@pytest.mark.parametrize("kind", KINDS)
def test_topk2_of_a_whole_chunk(kind: str) -> None:
    values_N = made(kind, 5 * 4096 + 100, 11)
    assert encoded(codec("topk2"), values_N) == references.topk2(values_N)


def test_topk2_leaves_out_a_block_that_is_nothing_beside_another() -> None:
    values_N = made("normal", 2 * 4096, 1, 0)
    values_N[4096:] *= np.float32(2.0**-45)
    payload = encoded(codec("topk2"), values_N)
    assert payload == references.topk2(values_N)
    out_N = np.empty_like(values_N)
    codec("topk2").decode(payload, out_N)
    assert np.count_nonzero(out_N[:4096]) == 64
    assert not out_N[4096:].any()
