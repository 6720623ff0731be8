"""What a contributor sends in a round: complete, and committed to, before its first byte leaves.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from zoonet.averaging.chunks import root_of
from zoonet.averaging.plan import chunk_bounds, chunk_values, num_chunks
from zoonet.codecs import Codec, note_sent
from zoonet.exact import Vector


@dataclass(frozen=True, slots=True)
class Payload:
    """A contribution as it is sent, chunk by chunk, and the digests of its chunks."""

    chunks: tuple[memoryview, ...]
    digests: bytes
    values_P: Vector | None = None  # the contribution itself, where the codec leaves something out

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
    `shared` memory (4 P bytes), which peers on the same host read for themselves. With others
    `feedback_P`, what earlier payloads have left out, is sent on top; `leave_out` says what is
    left then, if the payload counts, and until then neither vector may change. Raises ValueError
    for values that cannot be encoded.
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
    chunks = []
    room = room_for(codec, values_P.size)  # one mapping, which goes back to the system as a whole
    nothing_N = np.zeros(chunk_values(values_P.size), np.float32)
    for number in range(num_chunks(values_P.size)):
        start, stop = chunk_bounds(values_P.size, number)
        before_N = nothing_N[: stop - start] if feedback_P is None else feedback_P[start:stop]
        length = codec.encode(np.add(values_P[start:stop], before_N), room)
        chunks.append(room[:length])
        room = room[length:]
    return _hashed(chunks, values_P)


def room_for(codec: Codec, num_values: int) -> memoryview:
    """Memory for the payloads of all chunks of a vector, one after the other."""
    last = num_chunks(num_values) - 1
    start, stop = chunk_bounds(num_values, last)
    num_bytes = last * codec.max_bytes(chunk_values(num_values)) + codec.max_bytes(stop - start)
    return np.empty(num_bytes, np.uint8).data


def leave_out(payload: Payload, codec: Codec, feedback_P: Vector | None) -> Vector | None:
    """What is to be sent later (P,), now that the payload counts: work for a thread.

    `feedback_P` is what the payload was made with, and becomes the result, chunk by chunk; so
    there is never a second vector of that size. None where the codec leaves nothing out.
    """
    if payload.values_P is None:
        return feedback_P
    values_P = payload.values_P
    if feedback_P is None:
        feedback_P = np.zeros_like(values_P)
    for number, chunk in enumerate(payload.chunks):
        start, stop = chunk_bounds(values_P.size, number)
        note_sent(codec, chunk, values_P[start:stop], feedback_P[start:stop])
    return feedback_P


def _hashed(chunks: list[memoryview], values_P: Vector | None) -> Payload:
    digests = b"".join(blake3(chunk).digest() for chunk in chunks)
    return Payload(tuple(chunks), digests, values_P)
