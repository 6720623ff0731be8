"""Payloads from strangers: refused with a ValueError or decoded to finite values, never worse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codecs.chunks import SIZES, encoded, made
from zoonet.codecs import NAMES, Codec, codec

every_codec = pytest.mark.parametrize("one", [codec(name) for name in NAMES], ids=NAMES)
MARGIN = 64
CANARY = np.float32(123.25)
PAYLOADS = {
    (name, size): encoded(codec(name), made("normal", size, 3)) for name in NAMES for size in SIZES
}


def attack(one: Codec, payload: bytes, size: int) -> bool:
    """Decode into guarded memory; whether it was accepted."""
    memory = np.full(size + 2 * MARGIN, CANARY)
    out_N = memory[MARGIN : MARGIN + size]
    try:
        one.decode(payload, out_N)
    except ValueError:
        assert (memory == CANARY).all()
        with pytest.raises(ValueError):
            one.accumulate(payload, np.float32(0.5), out_N, is_first=False)
        assert (memory == CANARY).all()
        return False
    assert np.isfinite(out_N).all()
    one.accumulate(payload, np.float32(0.5), out_N, is_first=False)
    assert np.isfinite(out_N).all()
    assert (memory[:MARGIN] == CANARY).all() and (memory[-MARGIN:] == CANARY).all()
    return True


@every_codec
@settings(max_examples=150)
@given(payload=st.binary(max_size=600), size=st.sampled_from(SIZES))
def test_random_bytes(one: Codec, payload: bytes, size: int) -> None:
    attack(one, payload, size)


@every_codec
@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 30), size=st.sampled_from(SIZES))
def test_random_bytes_of_the_right_length(one: Codec, seed: int, size: int) -> None:
    length = len(PAYLOADS[one.name, size])
    attack(one, np.random.default_rng(seed).bytes(length), size)


@every_codec
@settings(max_examples=300)
@given(
    size=st.sampled_from(SIZES),
    flips=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4),
    cut=st.integers(-3, 3),
)
def test_mutated_payloads(one: Codec, size: int, flips: list[int], cut: int) -> None:
    payload = bytearray(PAYLOADS[one.name, size])
    for flip in flips:
        payload[flip // 8 % len(payload)] ^= 1 << flip % 8
    payload = payload[:cut] if cut < 0 else payload + bytes(cut)
    attack(one, bytes(payload), size)


@every_codec
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x55, 0x7F, 0x80])
def test_payloads_of_one_byte_repeated(one: Codec, fill: int) -> None:
    for size in SIZES:
        for length in {1, len(PAYLOADS[one.name, size]), one.max_bytes(size)}:
            attack(one, bytes([fill]) * length, size)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("fp32", b"\0\0\xc0\x7f"),
        ("fp32", b"\0\0\x80\xff"),
        ("fp16", b"\0\x7e"),
        ("bf16", b"\x80\xff"),
    ],
)
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(name: str, word: bytes) -> None:
    payload = PAYLOADS[name, 9001]
    for start in range(0, len(payload), 1000 * len(word)):
        hurt = payload[:start] + word + payload[start + len(word) :]
        assert not attack(codec(name), hurt, 9001)


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0xFF80, 0x8000, 0xBF80, 0x0001, 0x7F00, 0x0080])
def test_int8_refuses_a_scale_that_is_not_finite_negative_or_out_of_range(scale: int) -> None:
    payload = PAYLOADS["int8", 257]
    for start in (0, 2):
        hurt = payload[:start] + scale.to_bytes(2, "little") + payload[start + 2 :]
        assert not attack(codec("int8"), hurt, 257)


def test_int8_refuses_the_code_that_is_never_written() -> None:
    payload = bytearray(PAYLOADS["int8", 257])
    payload[-1] = 0x80
    assert not attack(codec("int8"), bytes(payload), 257)


@pytest.mark.parametrize("exponent", [1, 26, 228, 255])
def test_e3m0_refuses_an_exponent_out_of_range(exponent: int) -> None:
    payload = PAYLOADS["e3m0", 257]
    assert not attack(codec("e3m0"), payload[:1] + bytes([exponent]) + payload[2:], 257)


def test_topk2_refuses_bits_behind_its_end() -> None:
    refused = 0
    for seed in range(8):  # one in eight has no bits to spare
        payload = bytearray(encoded(codec("topk2"), made("normal", 4096, seed)))
        payload[-1] |= 0x80
        refused += not attack(codec("topk2"), bytes(payload), 4096)
    assert refused >= 3


def test_topk2_refuses_a_count_that_is_not_canonical() -> None:
    # one value: exponent, full bit 0, count 1 (as many as there are), which a full bit should say
    assert not attack(codec("topk2"), bytes([120, 0b0000_0010]), 1)
    assert attack(codec("topk2"), bytes([120, 0b0000_0000]), 1)  # none


@pytest.mark.slow
def test_no_decoder_looks_outside_its_arrays(tmp_path: Path) -> None:
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.codecs.fuzz", "20000", "1"],
        cwd=Path(__file__).parents[2],
        env=os.environ | checked,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    refused, decoded = map(int, ran.stdout.split())
    assert refused > 2000 and decoded > 2000
