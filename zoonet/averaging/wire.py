"""How values become the bytes of chunks: the job's codec, and what it has left out so far.

N = values of one chunk
"""

from __future__ import annotations

import threading

import numpy as np

from zoonet.codecs import Codec, encode_with_feedback
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart
from zoonet.exact import Vector

Key = tuple[bool, int]  # of a mean rather than a site's sum; number of the chunk


class Wire:
    """A job's codec, with the error feedback of the chunks that this peer adds up.

    Feedback belongs to a chunk and to what this peer is for it, root or owner of a site. What is
    made in a round counts once the round is certified; who was nothing for a chunk in that round
    forgets its feedback. Thread safe, as long as each chunk is encoded by one thread at a time.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._lock = threading.Lock()
        self._feedback: dict[Key, Vector] = {}
        self._next: dict[Key, Vector] = {}

    @property
    def is_exact(self) -> bool:
        """Payloads are the values themselves."""
        return self.codec.is_exact

    def max_bytes(self, num_values: int) -> int:
        """The most that a payload of so many values may have."""
        return self.codec.max_bytes(num_values)

    def check_size(self, peer_id: PeerId, num_bytes: int, num_values: int) -> None:
        """Raise InvalidPart unless a payload of so many values may be that long."""
        if self.is_exact and num_bytes != 4 * num_values:
            raise InvalidPart(peer_id, f"{num_bytes} bytes, not {4 * num_values}")
        if not 0 < num_bytes <= self.codec.max_bytes(num_values):
            raise InvalidPart(peer_id, f"{num_bytes} bytes of {num_values} values")

    def encode(self, is_mean: bool, number: int, values_N: Vector) -> memoryview:
        """Encode what was added up. `values_N` becomes what others will decode."""
        if self.is_exact:
            return values_N.view(np.uint8).data
        with self._lock:
            before_N = self._feedback.get((is_mean, number))
        left_N = np.zeros_like(values_N) if before_N is None else before_N.copy()
        out = memoryview(bytearray(self.codec.max_bytes(values_N.size)))
        try:
            num_bytes = encode_with_feedback(self.codec, values_N, left_N, out)
        except ValueError:  # with what was left out before, or by rounding, too large to be said
            limit = np.float32(self.codec.max_magnitude)
            np.clip(values_N, -limit, limit, out=values_N)
            left_N[:] = 0
            num_bytes = encode_with_feedback(self.codec, values_N, left_N, out)
        raw = out[:num_bytes]
        with self._lock:
            self._next[is_mean, number] = left_N
        self.codec.decode(raw, values_N)
        return raw

    def decoded(self, raw: memoryview, num_values: int) -> Vector:
        """The values of an own payload (N,)."""
        if self.is_exact:
            return np.frombuffer(raw, np.float32)
        values_N = np.empty(num_values, np.float32)
        self.codec.decode(raw, values_N)
        return values_N

    def settle(self, *, is_certified: bool) -> None:
        """The round is over: what its encoding left out is sent next time, or it never happened."""
        with self._lock:
            if is_certified:
                self._feedback = self._next
            self._next = {}


def is_finite(values_N: Vector) -> bool:
    """Tell whether no value is NaN or infinite. A finite sum proves it, in one quick pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(values_N)):
            return True
    return bool(np.isfinite(values_N).all())
