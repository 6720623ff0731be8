"""int8 and e3m0 (4 bits): a scale for every block of 256 values.

N = values of a chunk, B = its blocks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.base import (
    MAX_MAGNITUDE,
    Buffer,
    require_bytes,
    require_chunk,
    require_room,
    require_weight,
)
from zoonet.exact import Vector

if TYPE_CHECKING:
    from types import ModuleType

BLOCK: Final = 256
HALF: Final = BLOCK // 2
_PROBLEMS: Final = {2: "a scale out of range", 3: "a code that stands for nothing"}


class _Blockwise(ABC):
    """Scales of all blocks, then the codes of all values. The size follows from their number."""

    name: ClassVar[str]
    is_exact: ClassVar[bool] = False
    max_magnitude: ClassVar[float] = MAX_MAGNITUDE

    def prepare(self) -> None:
        """Compile the kernels, or load them from the cache on disk."""
        _kernels()

    @abstractmethod
    def max_bytes(self, num_values: int) -> int:
        """Return how long the payload of so many values is."""

    def encode(self, values_N: Vector, out: memoryview) -> int:
        require_chunk(values_N)
        payload = require_room(out, self.max_bytes(values_N.size))
        if self._encode(values_N, payload):
            raise ValueError(f"values that are not finite or beyond {MAX_MAGNITUDE:g}")
        return payload.size

    def decode(self, payload: Buffer, out_N: Vector) -> None:
        self._decode(payload, np.float32(1), 0, out_N)

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        self._decode(payload, require_weight(weight), 1 if is_first else 2, acc_N)

    @abstractmethod
    def _encode(self, values_N: Vector, payload: NDArray[np.uint8]) -> int:
        """Encode; not 0 where a value cannot be."""

    @abstractmethod
    def _decode(self, payload: Buffer, weight: np.float32, mode: int, out_N: Vector) -> None:
        """Check everything, then run a mode of the decoding kernel."""


class Int8(_Blockwise):
    """A signed byte a value, and a bf16 scale for 256: 1.0078 bytes a value.

    scale = largest magnitude / 127, rounded up to bf16; code = value / scale, rounded half to
    even; so the error is at most half a scale, 0.4 % of the block's largest value. A scale of bf16
    has the range of fp32, which one of fp16 has not, and costs half as much as one of fp32.
    """

    name = "int8"

    def max_bytes(self, num_values: int) -> int:
        return 2 * num_blocks(num_values) + num_values

    def _encode(self, values_N: Vector, payload: NDArray[np.uint8]) -> int:
        cut = 2 * num_blocks(values_N.size)
        status: int = _kernels().int8_encode(
            values_N, values_N.view(np.int32), payload[:cut], payload[cut:].view(np.int8)
        )
        return status

    def _decode(self, payload: Buffer, weight: np.float32, mode: int, out_N: Vector) -> None:
        require_chunk(out_N, is_output=True)
        payload_B = require_bytes(payload, self.max_bytes(out_N.size))
        cut = 2 * num_blocks(out_N.size)
        scales, codes_N = payload_B[:cut], payload_B[cut:].view(np.int8)
        kernels = _kernels()
        refuse(kernels.int8_check(scales, codes_N))
        kernels.int8_decode(scales, codes_N, weight, mode, out_N)


class E3M0(_Blockwise):
    """A sign and a power of two of seven, or zero: 4 bits a value, an exponent for 256.

    The number format of Streaming DiLoCo (arXiv 2501.18512). The block's exponent is that of its
    largest value, rounded to the nearest: the error is at most a third of the value, or, for the
    smallest, 1/128 of the largest. Integers alone; every decoded value is a power of two.
    """

    name = "e3m0"

    def max_bytes(self, num_values: int) -> int:
        return num_blocks(num_values) + (num_values + 1) // 2

    def _encode(self, values_N: Vector, payload: NDArray[np.uint8]) -> int:
        cut = num_blocks(values_N.size)
        status: int = _kernels().e3m0_encode(values_N.view(np.int32), payload[:cut], payload[cut:])
        return status

    def _decode(self, payload: Buffer, weight: np.float32, mode: int, out_N: Vector) -> None:
        require_chunk(out_N, is_output=True)
        payload_B = require_bytes(payload, self.max_bytes(out_N.size))
        cut = num_blocks(out_N.size)
        exponents_B, codes = payload_B[:cut], payload_B[cut:]
        kernels = _kernels()
        refuse(kernels.e3m0_check(exponents_B))
        kernels.e3m0_decode(exponents_B, codes, weight, mode, out_N)


def num_blocks(num_values: int) -> int:
    """How many blocks so many values have."""
    return -(-num_values // BLOCK)


def refuse(status: int) -> None:
    """Raise ValueError for the status of a kernel that is not 0."""
    if status:
        raise ValueError("a payload with " + _PROBLEMS[status])


def _kernels() -> ModuleType:
    from zoonet.codecs import block_kernels

    return block_kernels
