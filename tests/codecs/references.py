"""The lossy formats written out slowly, a value and a bit at a time, from their descriptions."""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np

from zoonet.exact import Vector

RATIOS = (9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64, 96)


def f32(number: float) -> float:
    """The nearest fp32."""
    return float(np.float32(number))


def bits_of(number: float) -> int:
    """The bits of an fp32."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def int8(values_N: Vector) -> bytes:
    """A bf16 scale for every 256 values, rounded up; codes rounded half to even."""
    scales, codes = b"", b""
    for start in range(0, values_N.size, 256):
        block = [float(value) for value in values_N[start : start + 256]]
        top = max(map(abs, block))
        if top < 2.0**-100:
            scales += bytes(2)
            codes += bytes(len(block))
            continue
        upper = (bits_of(f32(top * f32(1 / 127))) + 0xFFFF) >> 16
        scale = struct.unpack("<f", struct.pack("<I", upper << 16))[0]
        inverse = f32(1 / scale)
        scales += upper.to_bytes(2, "little")
        codes += b"".join(round(f32(value * inverse)).to_bytes(1, signed=True) for value in block)
    return scales + codes


def e3m0(values_N: Vector) -> bytes:
    """The nearest of 2 ** (exponent - 6 ... exponent) and 0; ties away from zero."""
    exponents, packed = b"", b""
    for start in range(0, values_N.size, 256):
        block = [float(value) for value in values_N[start : start + 256]]
        half = (len(block) + 1) // 2
        top = max(map(abs, block))
        if top < 2.0**-100:
            exponents += bytes(1)
            packed += bytes(half)
            continue
        low = math.floor(math.log2(top))
        exponent = low + (top >= 1.5 * 2.0**low)
        levels = [0.0] + [2.0 ** (exponent - 7 + level) for level in range(1, 8)]
        codes = []
        for value in block:
            distances = [(abs(abs(value) - level), -number) for number, level in enumerate(levels)]
            level = -min(distances)[1]
            codes.append(level + 8 * (value < 0 and level > 0))
        codes += [0] * (2 * half - len(block))
        exponents += bytes([exponent + 127])
        packed += bytes(a | b << 4 for a, b in zip(codes[:half], codes[half:], strict=True))
    return exponents + packed


def topk2(values_N: Vector) -> bytes:
    """Places by Golomb-coded gaps, signs, and the levels of the higher values by runs."""
    chosen = [_choose(values_N[start : start + 4096]) for start in range(0, values_N.size, 4096)]
    largest = max((code >> 3 for _, code, _, _ in chosen), default=0)
    text = ""
    for (places, code, ratio, marks), start in zip(
        chosen, range(0, values_N.size, 4096), strict=True
    ):
        block = values_N[start : start + 4096]
        full = -(-block.size // 64)
        octaves = largest - (code >> 3)
        if octaves > 31:
            places = []
        text += "1" if len(places) == full else "0" + _fixed(len(places), 7)
        if not places:
            continue
        text += _fixed(octaves, 5) + _fixed(code & 7, 3) + _fixed(ratio, 4)
        last = -1
        for place in places:
            text += _golomb(place - last - 1, 44, 5)
            last = place
        text += "".join("1" if block[place] < 0 else "0" for place in places)
        runs = "".join("H" if mark else "l" for mark in marks).split("H")
        if not runs[-1]:
            runs.pop()
        text += "".join(_golomb(len(run), 3, 1) for run in runs)
    text += "0" * (-len(text) % 8)
    body = bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))
    return bytes([largest]) + body


def _choose(block: Vector) -> tuple[list[int], int, int, list[bool]]:
    """Places, code of the low level, code of the ratio, and which are high."""
    order = sorted(range(block.size), key=lambda place: (-abs(float(block[place])), place))
    places = sorted(
        place for place in order[: -(-block.size // 64)] if abs(float(block[place])) >= 2.0**-100
    )
    if not places:
        return [], 0, 0, []
    sizes = [abs(float(block[place])) for place in places]
    unit = 2.0 ** (math.floor(math.log2(max(sizes))) - 23)
    fixed = [int(size / unit) for size in sizes]
    smallest = min(fixed)
    cut = smallest + (sum(fixed) // len(fixed) - smallest) * 51 // 32
    for _ in range(3):
        highs = [number for number in fixed if number > cut]
        lows = [number for number in fixed if number <= cut]
        marks = [number > cut for number in fixed]
        low = max(sum(lows) // len(lows), 1)
        high = sum(highs) // len(highs) if highs else low
        cut = max((low + high) // 2, smallest)
    code = (bits_of(low * unit) + (1 << 19)) >> 20
    coded_low = struct.unpack("<f", struct.pack("<I", code << 20))[0] / unit
    ratio = 0
    if highs:
        ratio = sum(high >= coded_low * (a + b) / 16 for a, b in itertools.pairwise(RATIOS))
    return places, code, ratio, marks


def _fixed(number: int, width: int) -> str:
    """Bits, the lowest first."""
    return f"{number:0{width}b}"[::-1]


def _golomb(number: int, m: int, bits: int) -> str:
    """number // m ones, a zero, and the rest in `bits` bits or one more."""
    rest, cut = number % m, 2 ** (bits + 1) - m
    text = "1" * (number // m) + "0"
    if rest < cut:
        return text + _fixed(rest, bits)
    return text + _fixed((rest + cut) >> 1, bits) + _fixed((rest + cut) & 1, 1)
