"""What a contributor sends in a round: complete, and committed to, before its first byte leaves.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from zoonet.averaging.chunks import root_of
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.exact import Vector


@dataclass(frozen=True, slots=True)
class Payload:
    """A contribution (P,), and the digests of its chunks. The vector must not change any more."""

    values_P: Vector
    digests: bytes

    @property
    def root(self) -> bytes:
        """The digest (32 bytes) that names all of it."""
        return root_of(self.digests)

    def chunk(self, number: int) -> Vector:
        """One chunk (N,)."""
        start, stop = chunk_bounds(self.values_P.size, number)
        return self.values_P[start:stop]


def make_payload(values_P: Vector) -> Payload:
    """Hash a contribution. This is one pass over it: work for a thread."""
    raw = values_P.view(np.uint8).data
    digests = []
    for number in range(num_chunks(values_P.size)):
        start, stop = chunk_bounds(values_P.size, number)
        digests.append(blake3(raw[4 * start : 4 * stop]).digest())
    return Payload(values_P, b"".join(digests))
