"""fp32, fp16 and bf16: a word a value, little-endian, with numpy alone.

N = values of a chunk
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from zoonet.codecs.base import (
    MAX_MAGNITUDE,
    Buffer,
    are_words_within,
    is_within,
    require_bytes,
    require_chunk,
    require_room,
    require_weight,
)
from zoonet.exact import Vector, require_exact_arithmetic

BLOCK: Final = 1 << 14  # values worked on at a time: they stay in the core's own cache

Words = NDArray[np.unsignedinteger[Any]]


class _Dense(ABC):
    """A word a value. `_word_limit` are the bits of the largest word."""

    name: ClassVar[str]
    is_exact: ClassVar[bool] = False
    max_magnitude: ClassVar[float] = MAX_MAGNITUDE
    _word: ClassVar[type[np.unsignedinteger[Any]]]
    _word_limit: ClassVar[int]
    _block: ClassVar[int] = BLOCK

    def prepare(self) -> None:
        """Nothing is compiled."""
        return

    def max_bytes(self, num_values: int) -> int:
        return num_values * np.dtype(self._word).itemsize

    def encode(self, values_N: Vector, out: memoryview) -> int:
        require_chunk(values_N)
        num_bytes = self.max_bytes(values_N.size)
        words_N = require_room(out, num_bytes).view(self._word)
        if not is_within(values_N, self.max_magnitude):
            raise ValueError(f"values that are not finite or beyond {self.max_magnitude:g}")
        for start in range(0, values_N.size, self._block):
            block = slice(start, start + self._block)
            self._narrow(values_N[block], words_N[block])
        return num_bytes

    def decode(self, payload: Buffer, out_N: Vector) -> None:
        words_N = self._checked(payload, out_N)
        for start in range(0, out_N.size, self._block):
            block = slice(start, start + self._block)
            self._widen(words_N[block], out_N[block])

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        weight = require_weight(weight)
        words_N = self._checked(payload, acc_N)
        scratch = np.empty(min(BLOCK, acc_N.size), np.float32)
        for start in range(0, acc_N.size, BLOCK):
            block = slice(start, start + BLOCK)
            acc = acc_N[block]
            product = acc if is_first else scratch[: acc.size]
            self._widen(words_N[block], product)
            np.multiply(product, weight, out=product)
            if not is_first:
                np.add(acc, product, out=acc)

    def _checked(self, payload: Buffer, out_N: Vector) -> Words:
        """The words of a payload for this output, all of them finite."""
        require_chunk(out_N, is_output=True)
        words_N = require_bytes(payload, self.max_bytes(out_N.size)).view(self._word)
        if not self._is_valid(words_N):
            raise ValueError("a payload with values that are not finite or too large")
        return words_N

    def _is_valid(self, words_N: Words) -> bool:
        return are_words_within(words_N, self._word_limit)

    @abstractmethod
    def _narrow(self, values: Vector, words: Words) -> None:
        """Round values to words."""

    @abstractmethod
    def _widen(self, words: Words, values: Vector) -> None:
        """Write the values that words stand for."""


class Fp32(_Dense):
    """The values themselves."""

    name = "fp32"
    is_exact = True
    _word = np.uint32
    _block = 1 << 30  # a copy needs no scratch

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        weight = require_weight(weight)
        values_N = self._checked(payload, acc_N).view(np.float32)
        if is_first:
            np.multiply(values_N, weight, out=acc_N)
            return
        scratch = np.empty(min(BLOCK, acc_N.size), np.float32)
        for start in range(0, acc_N.size, BLOCK):
            block = slice(start, start + BLOCK)
            acc = acc_N[block]
            product = scratch[: acc.size]
            np.multiply(values_N[block], weight, out=product)
            np.add(acc, product, out=acc)

    def _is_valid(self, words_N: Words) -> bool:
        return is_within(words_N.view(np.float32), self.max_magnitude)

    def _narrow(self, values: Vector, words: Words) -> None:
        np.copyto(words, values.view(np.uint32))

    def _widen(self, words: Words, values: Vector) -> None:
        np.copyto(values.view(np.uint32), words)


class Fp16(_Dense):
    """IEEE half precision, rounded half to even: 11 bits of precision down to 6e-5.

    Numpy's own conversion takes the values one by one; these steps are vectors' and ten times as
    fast.
    """

    name = "fp16"
    max_magnitude = 65504.0
    _word = np.uint16
    _word_limit = 0x7BFF

    def decode(self, payload: Buffer, out_N: Vector) -> None:
        require_exact_arithmetic()  # subnormal halves pass through subnormal floats
        super().decode(payload, out_N)

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        require_exact_arithmetic()
        super().accumulate(payload, weight, acc_N, is_first=is_first)

    def _narrow(self, values: Vector, words: Words) -> None:
        # Adding 2 ** 13 times the value's power of two (or that of the smallest normal half)
        # leaves the rounded mantissa in the lowest bits of the sum.
        bits = values.view(np.uint32)
        magnitude = np.bitwise_and(bits, np.uint32(0x7FFF_FFFF))
        exponent = np.maximum(magnitude, np.uint32(113 << 23))
        np.bitwise_and(exponent, np.uint32(0x7F80_0000), out=exponent)
        anchor = np.add(exponent, np.uint32(13 << 23))
        total = magnitude.view(np.float32)
        np.add(total, anchor.view(np.float32), out=total)
        np.subtract(magnitude, anchor, out=magnitude)
        np.subtract(exponent, np.uint32(113 << 23), out=exponent)
        np.right_shift(exponent, np.uint32(13), out=exponent)
        np.add(magnitude, exponent, out=magnitude)
        np.right_shift(bits, np.uint32(16), out=exponent)
        np.bitwise_and(exponent, np.uint32(0x8000), out=exponent)
        np.bitwise_or(magnitude, exponent, out=words, casting="unsafe")

    def _widen(self, words: Words, values: Vector) -> None:
        # Sign and mantissa are moved into place; a product with 2 ** 112 corrects the exponent.
        bits = values.view(np.int32)
        np.copyto(bits, words.view(np.int16))
        np.left_shift(bits, np.int32(13), out=bits)
        np.bitwise_and(bits, np.int32(0x8FFF_E000 - (1 << 32)), out=bits)
        np.multiply(values, np.float32(2.0**112), out=values)


class Bf16(_Dense):
    """The upper half of fp32, rounded half to even: 8 bits of precision at every magnitude."""

    name = "bf16"
    _word = np.uint16
    _word_limit = (127 + 100) << 7

    def _narrow(self, values: Vector, words: Words) -> None:
        bits = values.view(np.uint32)
        rounded = np.right_shift(bits, np.uint32(16))
        np.bitwise_and(rounded, np.uint32(1), out=rounded)
        np.add(rounded, np.uint32(0x7FFF), out=rounded)
        np.add(rounded, bits, out=rounded)
        np.right_shift(rounded, np.uint32(16), out=words, casting="unsafe")

    def _widen(self, words: Words, values: Vector) -> None:
        bits = values.view(np.uint32)
        np.copyto(bits, words)
        np.left_shift(bits, np.uint32(16), out=bits)
