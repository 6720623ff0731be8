"""Tensors are encoded to the bytes that vectors are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

torch = pytest.importorskip("torch")

from tests.codecs.chunks import KINDS, bits, chunks, decoded, encoded, made  # noqa: E402
from zoonet.codecs import NAMES, codec  # noqa: E402
from zoonet.codecs.on_device import decode_tensor, encode_tensor  # noqa: E402
from zoonet.exact import Vector  # noqa: E402

torch.set_num_threads(1)
every_name = pytest.mark.parametrize("name", NAMES)


def encoded_tensor(name: str, values_N: Vector, device: str = "cpu") -> bytes:
    room = bytearray(codec(name).max_bytes(values_N.size))
    tensor = torch.from_numpy(values_N).to(device)
    return bytes(room[: encode_tensor(name, tensor, memoryview(room))])


@every_name
@settings(max_examples=60)
@given(values_N=chunks())
def test_a_tensor_has_the_bytes_of_the_vector(name: str, values_N: Vector) -> None:
    assert encoded_tensor(name, values_N) == encoded(codec(name), values_N)


@every_name
def test_a_tensor_is_decoded_to_the_values_of_the_vector(name: str) -> None:
    values_N = made("normal", 9001, 1)
    payload = encoded(codec(name), values_N)
    out_N = torch.zeros(9001)
    decode_tensor(name, payload, out_N)
    assert bits(out_N.numpy()) == bits(decoded(codec(name), payload, 9001))
    with pytest.raises(ValueError):
        decode_tensor(name, payload[:-1], out_N)


@every_name
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_values_that_are_not_finite_is_not_encoded(name: str, value: float) -> None:
    values_N = made("normal", 5000, 1)
    values_N[4999] = value
    with pytest.raises(ValueError, match="not finite"):
        encoded_tensor(name, values_N)


def test_a_tensor_of_another_type_or_shape_is_refused() -> None:
    room = memoryview(bytearray(100_000))
    for wrong in (torch.zeros(10, dtype=torch.float64), torch.zeros(2, 5), torch.zeros(20)[::2]):
        with pytest.raises(ValueError, match="tensor"):
            encode_tensor("int8", wrong, room)
    with pytest.raises(ValueError, match="buffer"):
        encode_tensor("int8", torch.zeros(1000), room[:1000])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_name
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_writes_the_bytes_that_a_cpu_does(name: str, kind: str) -> None:
    values_N = made(kind, 5 * 4096 + 777, 3)
    assert encoded_tensor(name, values_N, "cuda") == encoded(codec(name), values_N)
