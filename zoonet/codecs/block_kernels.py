"""Compiled loops of the codecs with a scale for every block of 256 values: int8 and e3m0.

Magnitudes are compared as integers: floats of one sign are ordered as their bits are. The results
of `np.int32(...)` keep the loops in 32 bits, which is what makes them fast.

N = values of a chunk, B = its blocks
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.blockwise import BLOCK, HALF
from zoonet.codecs.jit import inlined, kernel
from zoonet.exact import Vector

OK: Final = 0
BAD_VALUE: Final = 1
BAD_SCALE: Final = 2
BAD_CODE: Final = 3

DECODE: Final = 0
FIRST: Final = 1
ADD: Final = 2

_MASK: Final = np.int32(0x7FFF_FFFF)
_MAX_BITS: Final = np.int32((127 + 100) << 23)  # 2 ** 100
_MIN_BITS: Final = np.int32((127 - 100) << 23)  # 2 ** -100
_ONE: Final = np.float32(1.0)
_ONE_127TH: Final = np.float32(1 / 127)
_MAGIC: Final = np.float32(12582912.0)  # 1.5 * 2 ** 23: adding it rounds to integers, half to even
_MIN_SCALE: Final = ((127 - 107) << 23) >> 16
_MAX_SCALE: Final = ((127 + 94) << 23) >> 16

_EXPONENT_HALF: Final = np.int32(1 << 22)  # adding it rounds a magnitude's exponent to the nearest
_TOP_LEVEL: Final = 7
_MIN_EXPONENT: Final = 127 - 100
_MAX_EXPONENT: Final = 127 + 100


@inlined
def _level_of(bits: np.int32, base: np.int32) -> np.uint8:
    """The code of a value for e3m0, in a block whose level 0 ends at 2 ** base."""
    magnitude = np.int32(bits & _MASK)
    if magnitude < np.int32(base << 23):  # half of the lowest level
        return np.uint8(0)
    level = max(np.int32(np.int32((magnitude + _EXPONENT_HALF) >> 23) - base), np.int32(1))
    return np.uint8(level | np.int32((bits >> 28) & 8))


@kernel("i64", "in f32", "in i32", "out u8", "out i8")
def int8_encode(
    values_N: Vector,
    bits_N: NDArray[np.int32],
    scales: NDArray[np.uint8],
    codes_N: NDArray[np.int8],
) -> int:
    """Encode `values_N`, whose bits are `bits_N`."""
    word = np.empty(1, np.float32)
    word_bits = word.view(np.int32)
    for block in range(scales.size // 2):
        start = block * BLOCK
        stop = min(start + BLOCK, values_N.size)
        bits = bits_N[start:stop]
        top = np.int32(0)
        for i in range(bits.size):
            top = max(top, np.int32(bits[i] & _MASK))
        if top > _MAX_BITS:
            return BAD_VALUE
        upper = 0
        inverse = np.float32(0.0)
        if top >= _MIN_BITS:
            word_bits[0] = top
            word[0] = word[0] * _ONE_127TH
            upper = (word_bits[0] + 0xFFFF) >> 16  # rounded up, so that no code exceeds 127
            word_bits[0] = upper << 16
            inverse = _ONE / word[0]
        scales[2 * block] = upper & 0xFF
        scales[2 * block + 1] = upper >> 8
        values = values_N[start:stop]
        codes = codes_N[start:stop]
        for i in range(values.size):
            codes[i] = np.int8(np.int32((values[i] * inverse + _MAGIC) - _MAGIC))
    return OK


@kernel("i64", "in u8", "in i8")
def int8_check(scales: NDArray[np.uint8], codes_N: NDArray[np.int8]) -> int:
    """Say whether a payload is one that `int8_encode` could have written."""
    for block in range(scales.size // 2):
        upper = np.int64(scales[2 * block]) | (np.int64(scales[2 * block + 1]) << 8)
        if upper != 0 and (upper < _MIN_SCALE or upper > _MAX_SCALE):
            return BAD_SCALE
    lowest = np.int8(0)
    for i in range(codes_N.size):
        lowest = np.int8(min(lowest, codes_N[i]))
    return BAD_CODE if lowest == -128 else OK


@kernel("i64", "in u8", "in i8", "f32", "i64", "out f32")
def int8_decode(
    scales: NDArray[np.uint8],
    codes_N: NDArray[np.int8],
    weight: np.float32,
    mode: int,
    out_N: Vector,
) -> int:
    """out = x, out = weight * x, or out += weight * x, with x = code * scale."""
    word = np.empty(1, np.float32)
    word_bits = word.view(np.int32)
    for block in range(scales.size // 2):
        start = block * BLOCK
        stop = min(start + BLOCK, codes_N.size)
        upper = np.int64(scales[2 * block]) | (np.int64(scales[2 * block + 1]) << 8)
        word_bits[0] = upper << 16
        scale = word[0]
        codes = codes_N[start:stop]
        out = out_N[start:stop]
        if mode == DECODE:
            for i in range(codes.size):
                out[i] = np.float32(codes[i]) * scale
        elif mode == FIRST:
            for i in range(codes.size):
                out[i] = (np.float32(codes[i]) * scale) * weight
        else:
            for i in range(codes.size):
                out[i] = out[i] + (np.float32(codes[i]) * scale) * weight
    return OK


@kernel("i64", "in i32", "out u8", "out u8")
def e3m0_encode(
    bits_N: NDArray[np.int32], exponents_B: NDArray[np.uint8], codes: NDArray[np.uint8]
) -> int:
    """Encode values by their bits alone.

    A block's exponent is that of its largest value. A code is a sign (8) and a level: 0 is zero,
    7 is 2 ** exponent, each level below is half of it; rounded to the nearest, ties away from zero.
    """
    for block in range(exponents_B.size):
        start = block * BLOCK
        stop = min(start + BLOCK, bits_N.size)
        bits = bits_N[start:stop]
        top = np.int32(0)
        for i in range(bits.size):
            top = max(top, np.int32(bits[i] & _MASK))
        if top > _MAX_BITS:
            return BAD_VALUE
        half = (bits.size + 1) // 2
        lower = codes[block * HALF : block * HALF + half]
        if top < _MIN_BITS:
            exponents_B[block] = 0
            for i in range(half):
                lower[i] = 0
            continue
        exponent = np.int32((top + _EXPONENT_HALF) >> 23)
        exponents_B[block] = exponent
        base = np.int32(exponent - _TOP_LEVEL)
        for i in range(half):
            lower[i] = _level_of(bits[i], base)
        upper = bits[half:]
        for i in range(upper.size):
            lower[i] = np.uint8(lower[i] | (_level_of(upper[i], base) << 4))
    return OK


@kernel("i64", "in u8")
def e3m0_check(exponents_B: NDArray[np.uint8]) -> int:
    """Say whether all exponents are ones that `e3m0_encode` writes."""
    for block in range(exponents_B.size):
        exponent = exponents_B[block]
        if exponent != 0 and (exponent < _MIN_EXPONENT or exponent > _MAX_EXPONENT):
            return BAD_SCALE
    return OK


@kernel("i64", "in u8", "in u8", "f32", "i64", "out f32")
def e3m0_decode(
    exponents_B: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    weight: np.float32,
    mode: int,
    out_N: Vector,
) -> int:
    """Do what `int8_decode` does.

    A code stands for one of 16 values, so the product with the weight is taken once for each.
    """
    levels = np.empty(16, np.float32)
    level_bits = levels.view(np.int32)
    for block in range(exponents_B.size):
        start = block * BLOCK
        stop = min(start + BLOCK, out_N.size)
        for level in range(8):
            is_zero = exponents_B[block] == 0 or level == 0
            exponent = 0 if is_zero else np.int64(exponents_B[block]) - _TOP_LEVEL + level
            level_bits[level] = exponent << 23
            levels[level + 8] = -levels[level] if exponent else levels[level]
        if mode != DECODE:
            for code in range(16):
                levels[code] = levels[code] * weight
        out = out_N[start:stop]
        half = (out.size + 1) // 2
        packed = codes[block * HALF : block * HALF + half]
        rest = out[half:]
        if mode == ADD:
            for i in range(half):
                out[i] = out[i] + levels[packed[i] & 15]
            for i in range(rest.size):
                rest[i] = rest[i] + levels[packed[i] >> 4]
        else:
            for i in range(half):
                out[i] = levels[packed[i] & 15]
            for i in range(rest.size):
                rest[i] = levels[packed[i] >> 4]
    return OK
