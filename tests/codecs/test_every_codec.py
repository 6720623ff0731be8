"""What all codecs promise, whatever their code is."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codecs.chunks import bits, chunks, decoded, encoded, made
from zoonet.codecs import NAMES, Codec, codec
from zoonet.errors import ConfigError

every_codec = pytest.mark.parametrize("one", [codec(name) for name in NAMES], ids=NAMES)
SHARE = np.float32(0.3)


@every_codec
@settings(max_examples=40)
@given(values_N=chunks())
def test_a_payload_is_no_longer_than_promised_and_always_the_same(one: Codec, values_N) -> None:
    payload = encoded(one, values_N)
    assert 0 < len(payload) <= one.max_bytes(values_N.size)
    assert encoded(one, values_N) == payload


@every_codec
@settings(max_examples=40)
@given(values_N=chunks(), weight=st.floats(2.0**-20, 1.0, width=32))
def test_accumulating_is_to_decode_and_then_multiply_and_add(
    one: Codec, values_N, weight: float
) -> None:
    payload, share = encoded(one, values_N), np.float32(weight)
    product_N = decoded(one, payload, values_N.size) * share
    acc_N = np.full(values_N.size, np.nan, np.float32)
    one.accumulate(payload, share, acc_N, is_first=True)
    assert bits(acc_N) == bits(product_N)
    before_N = made("spread", values_N.size, 5, 0) + np.float32(0)
    acc_N = before_N.copy()
    one.accumulate(payload, share, acc_N, is_first=False)
    assert bits(acc_N) == bits(before_N + product_N)


@every_codec
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 300, 4999])
def test_values_that_are_not_finite_are_not_encoded(one: Codec, value: float, place: int) -> None:
    values_N = made("normal", 5000, 1)
    values_N[place] = value
    with pytest.raises(ValueError, match="not finite"):
        encoded(one, values_N)


@every_codec
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_is_encoded_and_a_larger_one_is_not(one: Codec, sign: int) -> None:
    largest = np.float32(one.max_magnitude)
    values_N = np.array([0, sign * largest, 0], np.float32)
    assert np.isfinite(decoded(one, encoded(one, values_N), 3)).all()
    values_N.view(np.uint32)[1] += 1  # the next float away from zero
    with pytest.raises(ValueError, match="not finite"):
        encoded(one, values_N)


@every_codec
def test_a_payload_of_another_length_is_refused_and_changes_nothing(one: Codec) -> None:
    payload = encoded(one, made("normal", 5000, 1))
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2], payload * 40):
        out_N = np.full(5000, np.float32(7))
        with pytest.raises(ValueError):
            one.decode(wrong, out_N)
        with pytest.raises(ValueError):
            one.accumulate(wrong, SHARE, out_N, is_first=False)
        assert (out_N == 7).all()


@every_codec
def test_a_payload_of_another_number_of_values_is_refused(one: Codec) -> None:
    payload = encoded(one, made("normal", 5000, 1))
    for size in (1, 4096, 4097, 6000, 9000):
        with pytest.raises(ValueError):
            decoded(one, payload, size)


@every_codec
def test_a_payload_may_lie_anywhere_in_memory(one: Codec) -> None:
    values_N = made("normal", 5000, 1)
    payload = encoded(one, values_N)
    shifted = memoryview(b"x" + payload)[1:]
    out_N = np.empty(5000, np.float32)
    one.decode(shifted, out_N)
    assert bits(out_N) == bits(decoded(one, payload, 5000))
    acc_N = out_N.copy()
    one.accumulate(shifted, SHARE, acc_N, is_first=False)
    assert bits(acc_N) == bits(out_N + out_N * SHARE)
    room = memoryview(bytearray(one.max_bytes(5000) + 1))[1:]
    assert room[: one.encode(values_N, room)] == payload


@every_codec
def test_nothing_is_written_behind_the_room_that_was_asked_for(one: Codec) -> None:
    for kind in ("normal", "sparse", "equal"):
        values_N = made(kind, 5000, 1)
        room = bytearray(b"\xa5" * (one.max_bytes(5000) + 64))
        one.encode(values_N, memoryview(room))
        assert room[one.max_bytes(5000) :] == b"\xa5" * 64


@every_codec
@pytest.mark.parametrize("weight", [-1.5, 1e30, np.nan, np.inf, -np.inf])
def test_a_weight_that_makes_no_sense_is_refused(one: Codec, weight: float) -> None:
    payload = encoded(one, made("normal", 300, 1))
    with pytest.raises(ValueError, match="weight"):
        one.accumulate(payload, np.float32(weight), np.zeros(300, np.float32), is_first=True)


@every_codec
def test_memory_that_cannot_be_used_is_refused(one: Codec) -> None:
    values_N = made("normal", 300, 1)
    payload = encoded(one, values_N)
    with pytest.raises(ValueError, match="buffer"):
        one.encode(values_N, memoryview(bytearray(one.max_bytes(300) - 1)))
    with pytest.raises(ValueError, match="buffer"):
        one.encode(values_N, memoryview(bytes(one.max_bytes(300))))
    with pytest.raises(ValueError, match="contiguous"):
        encoded(one, np.zeros(600, np.float32)[::2])
    with pytest.raises(ValueError, match="contiguous"):
        one.decode(payload, np.zeros(600, np.float32)[::2])
    with pytest.raises(ValueError, match="f32"):
        one.decode(payload, np.zeros(300))
    with pytest.raises(ValueError, match="without values"):
        encoded(one, np.zeros(0, np.float32))
    constant_N = np.zeros(300, np.float32)
    constant_N.flags.writeable = False
    with pytest.raises(ValueError, match="write"):
        one.decode(payload, constant_N)
    assert encoded(one, constant_N)


@every_codec
def test_threads_do_not_disturb_each_other(one: Codec) -> None:
    inputs = [made("normal", 20_000, seed) for seed in range(4)]
    expected = [encoded(one, values_N) for values_N in inputs]
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        found[number] = [encoded(one, inputs[number]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == [expected[number]] * 20 for number in range(4))


@every_codec
def test_a_codec_takes_little_memory_besides_what_it_is_given(one: Codec) -> None:
    values_N = made("normal", 1 << 18, 1)
    room = memoryview(bytearray(one.max_bytes(values_N.size)))
    acc_N = np.zeros_like(values_N)
    num_bytes = one.encode(values_N, room)
    one.accumulate(room[:num_bytes], SHARE, acc_N, is_first=True)
    tracemalloc.start()
    try:
        one.encode(values_N, room)
        one.decode(room[:num_bytes], acc_N)
        one.accumulate(room[:num_bytes], SHARE, acc_N, is_first=False)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < values_N.nbytes / 4


def test_only_fp32_is_exact() -> None:
    assert [name for name in NAMES if codec(name).is_exact] == ["fp32"]


def test_names_go_from_the_most_bytes_to_the_fewest() -> None:
    sizes = [codec(name).max_bytes(1 << 16) for name in NAMES]
    assert sizes == sorted(sizes, reverse=True)
    assert NAMES == ("fp32", "fp16", "bf16", "int8", "e3m0", "topk2")


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="'int9'; did you mean 'int8'"):
        codec("int9")
    with pytest.raises(ConfigError, match="there are fp32, fp16"):
        codec("zzzzzz")


def test_dense_codecs_load_neither_numba_nor_torch() -> None:
    program = """
import sys
import numpy as np
from zoonet.codecs import codec
for name in ("fp32", "fp16", "bf16"):
    one = codec(name)
    one.prepare()
    values = np.ones(5000, np.float32)
    room = memoryview(bytearray(one.max_bytes(5000)))
    one.encode(values, room)
    one.accumulate(room, np.float32(0.5), values, is_first=False)
print({"numba", "torch"} & set(sys.modules) or "none")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout == "none\n"


def test_kernels_release_the_interpreter() -> None:
    from zoonet.codecs import bit_kernels, block_kernels, select_kernels

    kernels = [
        found
        for module in (bit_kernels, block_kernels, select_kernels)
        for found in vars(module).values()
        if hasattr(found, "targetoptions")
    ]
    assert len(kernels) >= 9
    assert all(found.targetoptions["nogil"] for found in kernels)
    assert not any(found.targetoptions.get("fastmath") for found in kernels)
