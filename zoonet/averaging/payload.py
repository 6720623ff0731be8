"""What a contributor sends in a round: complete, and committed to, before its first byte leaves.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from zoonet.averaging.chunks import root_of
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.codecs import Codec, encode_with_feedback
from zoonet.exact import Vector


@dataclass(frozen=True, slots=True)
class Payload:
    """A contribution as it is sent, chunk by chunk, and the digests of its chunks."""

    chunks: tuple[memoryview, ...]
    digests: bytes
    feedback_P: Vector | None = None  # what the codec left out, to be sent later

    @property
    def root(self) -> bytes:
        """The digest (32 bytes) that names all of it."""
        return root_of(self.digests)


def make_payload(
    values_P: Vector,
    codec: Codec,
    feedback_P: Vector | None = None,
    *,
    shared: memoryview | None = None,
) -> Payload:
    """Encode and hash a contribution (P,): two passes over it, work for a thread.

    An exact codec sends the vector itself, which must not change any more, or a copy of it in
    `shared` memory (4 P bytes), which peers on the same host read for themselves. For others
    `feedback_P` is what the last payload has left out. Raises ValueError for values that cannot
    be encoded.
    """
    if codec.is_exact:
        if shared is not None:
            copy_P = np.frombuffer(shared, np.float32)
            np.copyto(copy_P, values_P)
            values_P = copy_P
        raw = values_P.view(np.uint8).data
        bounds = [
            chunk_bounds(values_P.size, number) for number in range(num_chunks(values_P.size))
        ]
        return _hashed([raw[4 * start : 4 * stop] for start, stop in bounds], None)
    left_P = np.zeros_like(values_P) if feedback_P is None else feedback_P.copy()
    chunks = []
    for number in range(num_chunks(values_P.size)):
        start, stop = chunk_bounds(values_P.size, number)
        out = memoryview(bytearray(codec.max_bytes(stop - start)))
        length = encode_with_feedback(codec, values_P[start:stop], left_P[start:stop], out)
        chunks.append(out[:length])
    return _hashed(chunks, left_P)


def _hashed(chunks: list[memoryview], feedback_P: Vector | None) -> Payload:
    digests = b"".join(blake3(chunk).digest() for chunk in chunks)
    return Payload(tuple(chunks), digests, feedback_P)
