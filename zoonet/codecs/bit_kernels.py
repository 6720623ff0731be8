"""Compiled loops of topk2's bit stream: gaps between places in Golomb's code, signs, levels.

Bits fill bytes from the lowest one on. A chunk is one byte, the largest exponent of a low level,
and then for each block of 4096 values:

    1 bit     whether the block is full (one value in 64 is sent); if not, 7 bits say how many
    5 bits    how many octaves its low level is below the chunk's largest     unless it is empty
    3, 4 bits mantissa of the low level; which ratio the high level has to it
    gaps      Golomb's code with m = 44, the best for one place in 64
    signs     one bit each
    runs      lows between highs, and those after the last one: Golomb's code with m = 3

Published codes take 12 bits a place and 2 a value. Gaps take 7.5, and the level, the high one for
one value in five, is told in 0.8 bits.

B = blocks of a chunk, K = 64 places for each block, in ascending order
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.jit import inlined, kernel
from zoonet.codecs.sparse import BLOCK, PADDING_BYTES, PLACES
from zoonet.exact import Vector

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]

OK: Final = 0
TRUNCATED: Final = 1
BAD_COUNT: Final = 2
BAD_LEVEL: Final = 3
BAD_PLACE: Final = 4
BAD_RUN: Final = 5
TRAILING: Final = 6

MAX_OCTAVES: Final = 31
_MAX_EXPONENT: Final = 127 + 101
_GAP: Final = 44
_GAP_BITS: Final = 5
_RUN: Final = 3
_RUN_BITS: Final = 1
_FAILED: Final = -1
_SHORT: Final = 9  # ones with which a number still fits into 16 bits
_LOG2: Final = np.zeros(19, np.int64)  # of a power of two up to 2 ** 16, by its rest mod 19
for _power in range(17):
    _LOG2[2**_power % 19] = _power


@inlined
def _put(out: Bytes, position: int, value: int, width: int) -> int:
    """Write up to 16 bits; return the position behind them. `out` holds zeros there."""
    word = value << (position & 7)
    at = position >> 3
    out[at] = out[at] | (word & 0xFF)
    out[at + 1] = (word >> 8) & 0xFF
    out[at + 2] = (word >> 16) & 0xFF
    return position + width


@inlined
def _get(payload: Bytes, position: int, width: int) -> int:
    """Read up to 16 bits."""
    at = position >> 3
    word = np.int64(payload[at]) | (np.int64(payload[at + 1]) << 8)
    word = word | (np.int64(payload[at + 2]) << 16)
    return int((word >> (position & 7)) & ((1 << width) - 1))


@inlined
def _put_golomb(out: Bytes, position: int, number: int, m: int, bits: int) -> int:
    """Golomb's code: number // m in ones and a zero, the rest in `bits` or one more.

    One write, without a branch that depends on the number, unless it is a rare, long one.
    """
    ones = number // m
    while ones > _SHORT:
        position = _put(out, position, 1, 1)
        ones -= 1
    rest, cut = number % m, (2 << bits) - m
    raised = rest + cut
    is_long = rest >= cut
    code = (raised >> 1) | ((raised & 1) << bits) if is_long else rest
    width = ones + 1 + bits + (1 if is_long else 0)
    return _put(out, position, ((1 << ones) - 1) | (code << (ones + 1)), width)


@inlined
def _get_golomb(payload: Bytes, position: int, limit: int, m: int, bits: int) -> tuple[int, int]:
    """Read a number below `limit` and the position behind it; number -1 where there is none."""
    number = 0
    end = 8 * (payload.size - PADDING_BYTES)
    window = _get(payload, position, 16)
    lowest_zero = ~window & (window + 1)
    ones = int(_LOG2[lowest_zero % 19])
    while ones > _SHORT:
        number += m
        position += 1
        if number >= limit or position >= end:
            return _FAILED, position
        window = _get(payload, position, 16)
        lowest_zero = ~window & (window + 1)
        ones = int(_LOG2[lowest_zero % 19])
    cut = (2 << bits) - m
    rest = (window >> (ones + 1)) & ((1 << bits) - 1)
    last = (window >> (ones + 1 + bits)) & 1
    is_long = rest >= cut
    number += ones * m + (2 * rest + last - cut if is_long else rest)
    position += ones + 1 + bits + (1 if is_long else 0)
    if number >= limit or position > end:
        return _FAILED, position
    return number, position


@kernel("i64", "i64", "in i32", "in i32", "in u8", "in u8", "in i32", "in u8", "out u8")
def pack(
    num_values: int,
    counts_B: Ints,
    places_BK: Ints,
    is_negative_BK: Bytes,
    is_high_BK: Bytes,
    low_codes_B: Ints,
    ratio_codes_B: Bytes,
    out: Bytes,
) -> int:
    """Write what `select` chose; return the number of bytes."""
    largest = 0
    for block in range(counts_B.size):
        largest = max(largest, int(low_codes_B[block] >> 3))
    out[0] = largest
    out[1] = 0
    position = 8
    for block in range(counts_B.size):
        size = min(BLOCK, num_values - block * BLOCK)
        count = int(counts_B[block])
        octaves = largest - int(low_codes_B[block] >> 3)
        if octaves > MAX_OCTAVES:
            count = 0  # too small to matter beside the others
        is_full = count == (size + PLACES - 1) // PLACES
        position = _put(out, position, 1 if is_full else 0, 1)
        if not is_full:
            position = _put(out, position, count, 7)
        if count == 0:
            continue
        position = _put(out, position, octaves, 5)
        position = _put(out, position, int(low_codes_B[block] & 7), 3)
        position = _put(out, position, int(ratio_codes_B[block]), 4)
        base = block * PLACES
        last = -1
        for i in range(base, base + count):
            place = int(places_BK[i])
            position = _put_golomb(out, position, place - last - 1, _GAP, _GAP_BITS)
            last = place
        for i in range(base, base + count):
            position = _put(out, position, int(is_negative_BK[i]), 1)
        run = 0
        for i in range(base, base + count):
            if is_high_BK[i]:
                position = _put_golomb(out, position, run, _RUN, _RUN_BITS)
                run = 0
            else:
                run += 1
        if not is_high_BK[base + count - 1]:
            position = _put_golomb(out, position, run, _RUN, _RUN_BITS)
    return (position + 7) >> 3


@kernel("i64", "i64", "in u8", "in f32", "out f32", "out i32", "out i32", "out i32", "out f32")
def unpack(
    num_values: int,
    payload: Bytes,
    ratios: Vector,
    word: Vector,
    word_bits: Ints,
    counts_B: Ints,
    places_BK: Ints,
    values_BK: Vector,
) -> int:
    """Read the places and values of a payload, behind which PADDING_BYTES zeros follow.

    Refuses whatever `pack` does not write. Each step checks that it ended within the payload.
    """
    end = 8 * (payload.size - PADDING_BYTES)
    largest = int(payload[0])
    if largest > _MAX_EXPONENT:
        return BAD_LEVEL
    position = 8
    for block in range(counts_B.size):
        size = min(BLOCK, num_values - block * BLOCK)
        full = (size + PLACES - 1) // PLACES
        if position >= end:
            return TRUNCATED
        count = full
        is_full = _get(payload, position, 1)
        position += 1
        if not is_full:
            count = _get(payload, position, 7)
            position += 7
            if count >= full:
                return BAD_COUNT
        counts_B[block] = count
        if count == 0:
            continue
        if position + 12 > end:
            return TRUNCATED
        exponent = largest - _get(payload, position, 5)
        mantissa = _get(payload, position + 5, 3)
        ratio = ratios[_get(payload, position + 8, 4)]
        position += 12
        if exponent < 1:
            return BAD_LEVEL
        word_bits[0] = (exponent << 23) | (mantissa << 20)
        low = word[0]
        high = low * ratio
        base = block * PLACES
        place = -1
        for i in range(base, base + count):
            gap, position = _get_golomb(payload, position, size - 1 - place, _GAP, _GAP_BITS)
            if gap < 0:
                return BAD_PLACE
            place += gap + 1
            places_BK[i] = place
        if position + count > end:
            return TRUNCATED
        for i in range(base, base + count):
            values_BK[i] = -low if _get(payload, position, 1) else low
            position += 1
        done = 0
        while done < count:
            run, position = _get_golomb(payload, position, count - done + 1, _RUN, _RUN_BITS)
            if run < 0:
                return BAD_RUN
            done += run
            if done < count:
                values_BK[base + done] = -high if values_BK[base + done] < 0 else high
                done += 1
    if (position + 7) >> 3 != end >> 3:
        return TRAILING if position < end else TRUNCATED
    return TRAILING if _get(payload, position, end - position) else OK
