"""Compiled loops of topk2: which values of a block are sent, and which levels stand for them.

Everything is integers, so that another device comes to the same bits in another order of work.
N = values of a chunk, B = its blocks, K = 64 places for each block, in ascending order
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.jit import inlined, kernel
from zoonet.codecs.sparse import BLOCK, PLACES, RATIOS
from zoonet.exact import Vector

Ints = NDArray[np.int32]

NUM_COLUMNS: Final = 128

OK: Final = 0
BAD_VALUE: Final = 1

_MASK: Final = np.int32(0x7FFF_FFFF)
_MAX_BITS: Final = np.int32((127 + 100) << 23)  # 2 ** 100
_MIN_BITS: Final = np.int32((127 - 100) << 23)  # 2 ** -100
_RATIOS: Final = np.array(RATIOS, np.int64)
_ROUND: Final = 1 << 19  # half of the last of the 3 bits that a level's mantissa keeps


@inlined
def _kth_largest(numbers: Ints, k: int, lowest_bit: int) -> int:
    """The k-th largest of at least k numbers, with the bits below `lowest_bit` cleared."""
    found = np.int32(0)
    for bit in range(30, lowest_bit - 1, -1):
        trial = np.int32(found | (1 << bit))
        count = 0
        for i in range(numbers.size):
            count += numbers[i] >= trial
        if count >= k:
            found = trial
    return int(found)


@inlined
def _collect(
    magnitudes: Ints, lowest: int, flags: NDArray[np.uint8], hits: Ints, places: Ints
) -> int:
    """Write the places of magnitudes that are at least `lowest`; return how many.

    No branch depends on a magnitude. Flags are looked at eight at a time, as most are not set.
    """
    for i in range(magnitudes.size):
        flags[i] = magnitudes[i] >= lowest
    eights = flags.view(np.int64)
    num_hits = 0
    for i in range(eights.size):
        hits[num_hits] = i
        num_hits += eights[i] != 0
    count = 0
    for hit in hits[:num_hits]:
        start = hit * 8
        eight = flags[start : start + 8]
        for i in range(8):
            places[count] = start + i
            count += eight[i]
    return count


@inlined
def _levels(fixed: NDArray[np.int64], is_high: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Part magnitudes (fixed point) in two; return the means of both and how many are high.

    Starts from the best cut of an exponential tail, then goes twice halfway between the means
    (Lloyd's method).
    """
    smallest, total = fixed[0], 0
    for i in range(fixed.size):
        smallest = min(smallest, fixed[i])
        total += fixed[i]
    cut = smallest + (total // fixed.size - smallest) * 51 // 32
    low, high, num_high = 0, 0, 0
    for _ in range(3):
        low_sum, high_sum, num_high = 0, 0, 0
        for i in range(fixed.size):
            is_above = fixed[i] > cut
            is_high[i] = is_above
            num_high += is_above
            high_sum += fixed[i] if is_above else 0
            low_sum += 0 if is_above else fixed[i]
        low = max(low_sum // max(fixed.size - num_high, 1), 1)
        high = high_sum // num_high if num_high else low
        cut = max((low + high) // 2, smallest)
    return low, high, num_high


@kernel("i64", "in i32", "out i32", "out i32", "out u8", "out u8", "out i32", "out u8")
def select(
    bits_N: Ints,
    counts_B: Ints,
    places_BK: Ints,
    is_negative_BK: NDArray[np.uint8],
    is_high_BK: NDArray[np.uint8],
    low_codes_B: Ints,
    ratio_codes_B: NDArray[np.uint8],
) -> int:
    """Choose the largest 1/64 of every block by magnitude, the first ones where they are equal.

    A low level is coded by the upper 11 bits (8 of exponent, 3 of mantissa) of its fp32 form.
    """
    magnitudes = np.empty(BLOCK, np.int32)
    maxima = np.empty(NUM_COLUMNS, np.int32)
    flags = np.empty(BLOCK, np.uint8)
    hits = np.empty(BLOCK // 8 + 1, np.int32)
    candidates = np.empty(BLOCK + 1, np.int32)
    sizes = np.empty(BLOCK, np.int32)
    fixed = np.empty(PLACES, np.int64)
    word = np.empty(1, np.float32)
    word_bits = word.view(np.int32)
    for block in range(counts_B.size):
        bits = bits_N[block * BLOCK : min((block + 1) * BLOCK, bits_N.size)]
        for i in range(bits.size):
            magnitudes[i] = bits[i] & _MASK
        magnitudes[bits.size :] = 0
        maxima[:] = 0
        for row in range(0, BLOCK, NUM_COLUMNS):
            values = magnitudes[row : row + NUM_COLUMNS]
            for i in range(NUM_COLUMNS):
                maxima[i] = max(maxima[i], values[i])
        top = maxima.max()
        if top > _MAX_BITS:
            return BAD_VALUE
        counts_B[block] = 0
        low_codes_B[block] = 0
        ratio_codes_B[block] = 0
        if top < _MIN_BITS:
            continue
        # At least k columns have a value of this size, so the k largest values do too.
        k = (bits.size + PLACES - 1) // PLACES
        bound = max(_kth_largest(maxima, k, 10), int(_MIN_BITS))
        count = _collect(magnitudes, bound, flags, hits, candidates)
        for i in range(count):
            sizes[i] = magnitudes[candidates[i]]
        smallest, num_ties = np.int32(0), k
        if count > k:
            smallest = np.int32(_kth_largest(sizes[:count], k, 0))
            for i in range(count):
                num_ties -= sizes[i] > smallest
        base = block * PLACES
        exponent = top >> 23
        num_chosen = 0
        for i in range(count):
            if sizes[i] < smallest or (sizes[i] == smallest and num_ties == 0):
                continue
            num_ties -= sizes[i] == smallest
            shift = min(exponent - (sizes[i] >> 23), 31)
            fixed[num_chosen] = ((sizes[i] & 0x7FFFFF) | 0x800000) >> shift
            places_BK[base + num_chosen] = candidates[i]
            is_negative_BK[base + num_chosen] = bits[candidates[i]] < 0
            num_chosen += 1
        low, high, num_high = _levels(fixed[:num_chosen], is_high_BK[base : base + num_chosen])
        word[0] = np.float32(low)  # exact: below 2 ** 24
        code = (word_bits[0] + ((exponent - 150) << 23) + _ROUND) >> 20
        counts_B[block] = num_chosen
        low_codes_B[block] = code
        if num_high:
            # the coded low level in the same fixed point, times 8
            coded_low = (8 + (code & 7)) << ((code >> 3) - exponent + 23)
            ratio_code = 0
            for i in range(_RATIOS.size - 1):
                ratio_code += high * 128 >= coded_low * (_RATIOS[i] + _RATIOS[i + 1])
            ratio_codes_B[block] = ratio_code
    return OK


@kernel("i64", "in i32", "in i32", "in f32", "f32", "i64", "out f32")
def scatter(
    counts_B: Ints, places_BK: Ints, values_BK: Vector, weight: np.float32, mode: int, out_N: Vector
) -> int:
    """out = x (mode 0), out = weight * x (1) or out += weight * x (2). Places were checked."""
    if mode != 2:
        out_N[:] = 0
    for block in range(counts_B.size):
        out = out_N[block * BLOCK :]
        base = block * PLACES
        for i in range(base, base + counts_B[block]):
            place = places_BK[i]
            if mode == 0:
                out[place] = values_BK[i]
            elif mode == 1:
                out[place] = values_BK[i] * weight
            else:
                out[place] = out[place] + values_BK[i] * weight
    return OK
