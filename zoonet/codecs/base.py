"""What a codec is, and the checks that all of them share.

N = values of a chunk
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from zoonet.exact import Vector, require_vector

Buffer = bytes | bytearray | memoryview

MAX_MAGNITUDE: Final = 2.0**100  # of a value: no sum of such overflows


class Codec(Protocol):
    """Turns a chunk of a vector into bytes and back. Stateless; callable from many threads.

    A chunk is any positive number of values. The same values give the same bytes, and the same
    bytes the same values, on every processor. The interpreter's lock is released for the
    arithmetic. What a payload says is checked before anything is written: on ValueError the output
    is as it was.
    """

    @property
    def name(self) -> str:
        """How a job and a plan call it."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether what is decoded has the bits of what was encoded."""
        ...

    @property
    def max_magnitude(self) -> float:
        """The largest magnitude of a value that can be encoded."""
        ...

    def prepare(self) -> None:
        """Compile what there is to compile (seconds the first time), so that no round waits."""
        ...

    def max_bytes(self, num_values: int) -> int:
        """Return how long the payload of so many values is at most."""
        ...

    def encode(self, values_N: Vector, out: memoryview) -> int:
        """Write the payload to the beginning of `out` (`max_bytes` or more); return its length.

        Raises ValueError for values that are not finite or beyond `max_magnitude`.
        """
        ...

    def decode(self, payload: Buffer, out_N: Vector) -> None:
        """Write the values of a payload. Raises ValueError for anything but a whole, valid one."""
        ...

    def accumulate(
        self, payload: Buffer, weight: np.float32, acc_N: Vector, *, is_first: bool
    ) -> None:
        """acc = weight * x, or acc += weight * x: two fp32 operations, each rounded.

        Raises ValueError as `decode` does, and for a weight that is not in -1 ... 1.
        """
        ...


def require_chunk(values_N: Vector, *, is_output: bool = False) -> None:
    """Raise ValueError for anything but a contiguous fp32 vector with values in it."""
    require_vector(values_N, values_N.size)
    if values_N.size == 0:
        raise ValueError("a chunk without values")
    flags = values_N.flags
    if not (flags.carray if is_output else flags.c_contiguous and flags.aligned):
        raise ValueError("a chunk that is not contiguous memory" + " to write to" * is_output)


def require_room(out: memoryview, num_bytes: int) -> NDArray[np.uint8]:
    """Return the first bytes of a buffer to write to. Raises ValueError where it is too small."""
    if out.readonly or not out.c_contiguous or out.nbytes < num_bytes:
        raise ValueError(f"a buffer of {out.nbytes} bytes to write {num_bytes} to")
    return np.frombuffer(out, np.uint8, num_bytes)


def require_bytes(payload: Buffer, num_bytes: int) -> NDArray[np.uint8]:
    """Return the bytes of a payload. Raises ValueError where there are more or fewer."""
    payload_B = as_bytes(payload)
    if payload_B.size != num_bytes:
        raise ValueError(f"a payload of {payload_B.size} bytes, expected {num_bytes}")
    return payload_B


def as_bytes(payload: Buffer) -> NDArray[np.uint8]:
    """Return the bytes of a payload, not copied. Raises ValueError where they are strided."""
    if isinstance(payload, memoryview) and not payload.c_contiguous:
        raise ValueError("a payload that is not contiguous memory")
    if len(payload) == 0:
        raise ValueError("an empty payload")
    return np.frombuffer(payload, np.uint8)


def require_weight(weight: np.float32) -> np.float32:
    """Return the weight as fp32. Raises ValueError for one beyond -1 ... 1, and for NaN."""
    if not -1 <= weight <= 1:
        raise ValueError(f"a weight of {weight}")
    return np.float32(weight)


def is_within(values_N: Vector, limit: float) -> bool:
    """Whether no magnitude is beyond the limit, and nothing is NaN."""
    with np.errstate(invalid="ignore"):
        return bool(values_N.max() <= limit and values_N.min() >= -limit)


def are_words_within(words_N: NDArray[np.unsignedinteger[Any]], limit: int) -> bool:
    """The same for floats of any size by their bits, and a limit by its bits.

    Floats of one sign are ordered as their bits are; so two maxima tell, without a copy.
    """
    signed_N = words_N.view(f"i{words_N.itemsize}")
    sign = 1 << (8 * words_N.itemsize - 1)
    return int(signed_N.max()) <= limit and int(words_N.max()) <= sign + limit
