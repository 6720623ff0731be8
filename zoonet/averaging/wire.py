"""How values become the bytes of chunks: the job's codec, and what it has left out so far.

N = values of one chunk
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from zoonet.codecs import Codec, encode_into_feedback
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart
from zoonet.exact import Vector, require_exact_arithmetic, weighted_mean

# With these the values that a payload stands for are encoded as that payload, to the bit.
REPEATABLE: Final = frozenset({"fp16", "bf16"})

Values = Vector | memoryview  # of a chunk: themselves, or as they are sent
Key = tuple[bool, int]  # of a mean rather than a site's sum; number of the chunk


class Wire:
    """A job's codec, with the error feedback of the chunks that this peer adds up.

    Feedback belongs to a chunk and to what this peer is for it, root or owner of a site. Who was
    nothing for a chunk in a certified round forgets its feedback, and so does who encoded it in a
    round that was given up: the next one has another plan, and to be able to go back would take
    twice the memory. Thread safe, as long as each chunk is encoded by one thread at a time.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._lock = threading.Lock()
        self._feedback: dict[Key, Vector] = {}
        self._made: set[Key] = set()  # whose feedback is of the round under way
        self._num_settled = 0

    @property
    def is_exact(self) -> bool:
        """Payloads are the values themselves."""
        return self.codec.is_exact

    @property
    def is_repeatable(self) -> bool:
        """A payload can be made again from its values, so nobody has to keep it."""
        return self.codec.name in REPEATABLE

    def encode_again(self, values_N: Vector) -> memoryview:
        """The payload that these values were decoded from, with a repeatable codec."""
        out = memoryview(bytearray(self.codec.max_bytes(values_N.size)))
        return out[: self.codec.encode(values_N, out)]

    def max_bytes(self, num_values: int) -> int:
        """The most that a payload of so many values may have."""
        return self.codec.max_bytes(num_values)

    def check_size(self, peer_id: PeerId, num_bytes: int, num_values: int) -> None:
        """Raise InvalidPart unless a payload of so many values may be that long."""
        if self.is_exact and num_bytes != 4 * num_values:
            raise InvalidPart(peer_id, f"{num_bytes} bytes, not {4 * num_values}")
        if not 0 < num_bytes <= self.codec.max_bytes(num_values):
            raise InvalidPart(peer_id, f"{num_bytes} bytes of {num_values} values")

    def encode(
        self, is_mean: bool, number: int, values_N: Vector, out: memoryview | None = None
    ) -> memoryview:
        """Encode what was added up, into `out` (`max_bytes`) where that is given.

        `values_N` becomes what others will decode.
        """
        if self.is_exact:
            return values_N.view(np.uint8).data
        left_N, began = self._take_feedback((is_mean, number), values_N.size)
        if out is None:
            out = memoryview(bytearray(self.codec.max_bytes(values_N.size)))
        try:
            num_bytes = encode_into_feedback(self.codec, values_N, left_N, out)
        except ValueError:  # with what was left out before, or by rounding, too large to be said
            limit = np.float32(self.codec.max_magnitude)
            np.clip(values_N, -limit, limit, out=values_N)
            left_N[:] = 0
            num_bytes = encode_into_feedback(self.codec, values_N, left_N, out)
        raw = out[:num_bytes]
        with self._lock:
            if self._num_settled == began:
                self._feedback[is_mean, number] = left_N
                self._made.add((is_mean, number))
        self.codec.decode(raw, values_N)
        return raw

    def _take_feedback(self, key: Key, num_values: int) -> tuple[Vector, int]:
        """A chunk's feedback, to be changed in place, and the round it is of."""
        with self._lock:
            left_N = self._feedback.pop(key, None)
            began = self._num_settled
            is_of_before = key not in self._made
        if left_N is None or not is_of_before:
            left_N = np.zeros(num_values, np.float32)
        return left_N, began

    def add_up(self, parts: Sequence[Values], weights: Sequence[int], out_N: Vector) -> None:
        """Write the mean of parts, by weight and in this order: the bits of `weighted_mean`.

        Encoded ones are added as they are decoded, so that they need no memory of their own.
        """
        vectors = [part for part in parts if not isinstance(part, memoryview)]
        if len(vectors) == len(parts):
            weighted_mean(vectors, weights, out=out_N)
            return
        require_exact_arithmetic()
        total = sum(weights)
        for at, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            share = np.float32(weight / total)
            if isinstance(part, memoryview):
                self.codec.accumulate(part, share, out_N, is_first=at == 0)
            elif at:
                np.add(out_N, np.multiply(part, share), out=out_N)
            else:
                np.multiply(part, share, out=out_N)

    def settle(self, *, is_certified: bool) -> None:
        """The round is over: what its encoding left out is sent next time, or it is forgotten."""
        with self._lock:
            is_kept = self._made.__contains__ if is_certified else self._is_untouched
            self._feedback = {key: left for key, left in self._feedback.items() if is_kept(key)}
            self._made.clear()
            self._num_settled += 1

    def _is_untouched(self, key: Key) -> bool:
        return key not in self._made


def is_finite(values_N: Vector) -> bool:
    """Tell whether no value is NaN or infinite. A finite sum proves it, in one quick pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(values_N)):
            return True
    return bool(np.isfinite(values_N).all())
