"""topk2: one value in 64, two bits of each, as in SparseLoCo (arXiv 2508.15706).

Two thirds of its published size: places are told by the gaps between them, and of the two
magnitudes that a block has, the rarer one takes the more bits (`bit_kernels` has the format). It
forgets most of a vector at a time: use it with error feedback.

N = values of a chunk, B = its blocks of 4096, K = 64 places for each block
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.base import (
    MAX_MAGNITUDE,
    Buffer,
    as_bytes,
    require_chunk,
    require_room,
    require_weight,
)
from zoonet.exact import Vector

if TYPE_CHECKING:
    from types import ModuleType

BLOCK: Final = 4096
PLACES: Final = 64
PADDING_BYTES: Final = 4  # behind a payload: `unpack` may look there, and `pack` write
# of a block: 20 bits of header; 64 gaps of 7 bits and 93 (4096 // 44) ones; 64 signs; runs of which
# the shortest take 2 bits each and none takes more than 1 bit a low and 3 bits itself
_MAX_BLOCK_BYTES: Final = (20 + 64 * 7 + 93 + 64 + 65 * 3 + 22 + 7) // 8
_PROBLEMS: Final = {
    1: "too few bytes",
    2: "a number of values that is not canonical",
    3: "a level out of range",
    4: "a place out of range",
    5: "a run of levels that is too long",
    6: "bytes or bits behind its end",
}
# of the high level to the low one, in eighths
RATIOS: Final = (9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is sent of a chunk, before it is bits. The arrays of K have room for full blocks."""

    counts_B: NDArray[np.int32]
    places_BK: NDArray[np.int32]  # ascending
    is_negative_BK: NDArray[np.uint8]
    is_high_BK: NDArray[np.uint8]
    low_codes_B: NDArray[np.int32]  # upper 11 bits of the lower magnitude, as fp32
    ratio_codes_B: NDArray[np.uint8]

    @classmethod
    def room_for(cls, num_values: int) -> Chosen:
        """Empty arrays for a chunk of so many values."""
        blocks = num_blocks(num_values)
        return cls(
            np.empty(blocks, np.int32),
            np.empty(blocks * PLACES, np.int32),
            np.empty(blocks * PLACES, np.uint8),
            np.empty(blocks * PLACES, np.uint8),
            np.empty(blocks, np.int32),
            np.empty(blocks, np.uint8),
        )


class TopK2:
    """The largest 1/64 of every 4096 values; a sign and one of two magnitudes each.

    Ties go to the first. Magnitudes are the means of the lower and the higher part, with 3 bits of
    mantissa; a block more than 31 octaves below the chunk's largest is left out.
    """

    name: ClassVar[str] = "topk2"
    is_exact: ClassVar[bool] = False
    max_magnitude: ClassVar[float] = MAX_MAGNITUDE

    def prepare(self) -> None:
        """Compile the kernels, or load them from the cache on disk."""
        _kernels()

    def max_bytes(self, num_values: int) -> int:
        return 1 + num_blocks(num_values) * _MAX_BLOCK_BYTES + PADDING_BYTES

    def encode(self, values_N: Vector, out: memoryview) -> int:
        require_chunk(values_N)
        payload = require_room(out, self.max_bytes(values_N.size))
        chosen = Chosen.room_for(values_N.size)
        select, _ = _kernels()
        if select.select(
            values_N.view(np.int32),
            chosen.counts_B,
            chosen.places_BK,
            chosen.is_negative_BK,
            chosen.is_high_BK,
            chosen.low_codes_B,
            chosen.ratio_codes_B,
        ):
            raise ValueError(f"values that are not finite or beyond {MAX_MAGNITUDE:g}")
        return pack(values_N.size, chosen, payload)

    def decode(self, payload: Buffer, out_N: Vector) -> None:
        self._decode(payload, np.float32(1), 0, out_N)

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        """As the Protocol says, but what is not sent leaves a -0.0 in `acc_N` as it is."""
        self._decode(payload, require_weight(weight), 1 if is_first else 2, acc_N)

    def _decode(self, payload: Buffer, weight: np.float32, mode: int, out_N: Vector) -> None:
        require_chunk(out_N, is_output=True)
        counts_B, places_BK, values_BK = unpack(payload, out_N.size)
        select, _ = _kernels()
        select.scatter(counts_B, places_BK, values_BK, weight, mode, out_N)


def pack(num_values: int, chosen: Chosen, out: NDArray[np.uint8]) -> int:
    """Write the bits of what was chosen; return the number of bytes."""
    _, bits = _kernels()
    num_bytes: int = bits.pack(
        num_values,
        chosen.counts_B,
        chosen.places_BK,
        chosen.is_negative_BK,
        chosen.is_high_BK,
        chosen.low_codes_B,
        chosen.ratio_codes_B,
        out,
    )
    return num_bytes


def unpack(payload: Buffer, num_values: int) -> tuple[NDArray[np.int32], NDArray[np.int32], Vector]:
    """Return counts_B, places_BK and values_BK of a payload. Raises ValueError."""
    payload_B = as_bytes(payload)
    blocks = num_blocks(num_values)
    if payload_B.size > 1 + blocks * _MAX_BLOCK_BYTES:
        raise ValueError(f"a payload of {payload_B.size} bytes for {num_values} values")
    padded = np.zeros(payload_B.size + PADDING_BYTES, np.uint8)
    padded[: payload_B.size] = payload_B
    counts_B = np.empty(blocks, np.int32)
    places_BK = np.empty(blocks * PLACES, np.int32)
    values_BK = np.empty(blocks * PLACES, np.float32)
    word = np.empty(1, np.float32)
    ratios = np.array(RATIOS, np.float32) / np.float32(8)
    _, bits = _kernels()
    status = bits.unpack(
        num_values,
        padded,
        ratios,
        word,
        word.view(np.int32),
        counts_B,
        places_BK,
        values_BK,
    )
    if status:
        raise ValueError("a payload with " + _PROBLEMS[status])
    return counts_B, places_BK, values_BK


def num_blocks(num_values: int) -> int:
    """How many blocks so many values have."""
    return -(-num_values // BLOCK)


def _kernels() -> tuple[ModuleType, ModuleType]:
    from zoonet.codecs import bit_kernels, select_kernels

    return select_kernels, bit_kernels
