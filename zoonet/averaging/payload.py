"""What a contributor sends in a round: complete, and committed to, before its first byte leaves.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from blake3 import blake3

from zoonet.averaging.chunks import root_of
from zoonet.averaging.plan import chunk_bounds, chunk_values, num_chunks
from zoonet.codecs import Codec, note_sent
from zoonet.exact import Vector

MAX_MAPPINGS: Final = 64  # of one payload: a process may have some 65,000
LEAST_MAPPED_BYTES: Final = 16 * 1024


class Payload:
    """A contribution as it is sent, chunk by chunk, and the digests of its chunks. Thread safe.

    Where the codec leaves something out, a chunk that is not needed any more can be dropped. It is
    encoded again for whoever asks for it all the same: the same values give the same bytes.
    """

    def __init__(
        self,
        chunks: list[memoryview],
        digests: bytes,
        *,
        codec: Codec,
        values_P: Vector,
        feedback_P: Vector | None = None,
    ) -> None:
        self.digests = digests
        self._chunks: list[memoryview | None] = list(chunks)
        self._codec = codec
        self._values_P = values_P
        self._feedback_P = feedback_P  # what former payloads have left out: it is in this one
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def root(self) -> bytes:
        """The digest (32 bytes) that names all of it."""
        return root_of(self.digests)

    @property
    def is_exact(self) -> bool:
        """Its codec leaves nothing out."""
        return self._codec.is_exact

    @property
    def held_bytes(self) -> int:
        """Of the chunks that are here as they are sent."""
        with self._lock:
            return sum(len(chunk) for chunk in self._chunks if chunk is not None)

    def chunk(self, number: int) -> memoryview | None:
        """A chunk as it is sent; None where it was dropped and the payload closed since."""
        with self._lock:
            found = self._chunks[number]
            if found is None and not self._is_closed:
                found = self._chunks[number] = self._encoded(number)
            return found

    def drop(self, number: int) -> None:
        """Whoever needed this chunk has it, by all that is known here."""
        if not self._codec.is_exact:
            with self._lock:
                self._chunks[number] = None

    def leave_out(self) -> Vector | None:
        """Close it, as it counts, and return what is to be sent later (P,): work for a thread.

        The feedback that it was made with becomes the result, chunk by chunk; so there is never a
        second vector of that size. None where the codec leaves nothing out.
        """
        if self._codec.is_exact:
            return self._feedback_P
        with self._lock:
            self._is_closed = True
        feedback_P = self._feedback_P
        if feedback_P is None:
            feedback_P = np.zeros_like(self._values_P)
        for number, chunk in enumerate(self._chunks):
            raw = self._encoded(number) if chunk is None else chunk
            start, stop = chunk_bounds(feedback_P.size, number)
            note_sent(self._codec, raw, self._values_P[start:stop], feedback_P[start:stop])
        return feedback_P

    def _encoded(self, number: int) -> memoryview:
        start, stop = chunk_bounds(self._values_P.size, number)
        out = fresh_memory(self._codec.max_bytes(stop - start))
        wanted_N = _wanted(self._values_P, self._feedback_P, start, stop)
        return out[: self._codec.encode(wanted_N, out)]


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
    `feedback_P`, what earlier payloads have left out, is sent on top; `Payload.leave_out` says
    what is left then, if the payload counts, and until then neither vector may change. Raises
    ValueError for values that cannot be encoded.
    """
    bounds = [chunk_bounds(values_P.size, number) for number in range(num_chunks(values_P.size))]
    made = (
        _as_they_are(values_P, bounds, shared)
        if codec.is_exact
        else _encoded(values_P, codec, feedback_P, bounds)
    )
    chunks, digests = [], []
    for chunk in made:  # each is hashed while it is still in the core's cache
        chunks.append(chunk)
        digests.append(blake3(chunk).digest())
    return Payload(chunks, b"".join(digests), codec=codec, values_P=values_P, feedback_P=feedback_P)


def _as_they_are(
    values_P: Vector, bounds: list[tuple[int, int]], shared: memoryview | None
) -> Iterator[memoryview]:
    """Chunks of an exact codec: pieces of the vector, or of its copy in shared memory."""
    sent_P = values_P if shared is None else np.frombuffer(shared, np.float32)
    raw = sent_P.view(np.uint8).data
    for start, stop in bounds:
        if shared is not None:
            np.copyto(sent_P[start:stop], values_P[start:stop])
        yield raw[4 * start : 4 * stop]


def _encoded(
    values_P: Vector, codec: Codec, feedback_P: Vector | None, bounds: list[tuple[int, int]]
) -> Iterator[memoryview]:
    """Chunks of a lossy codec. Raises ValueError for values that cannot be encoded."""
    num_together = -(-len(bounds) // MAX_MAPPINGS)
    scratch = np.empty(chunk_values(values_P.size), np.float32)
    for number, (start, stop) in enumerate(bounds):
        if number % num_together == 0:  # memory that goes back to the system with its last chunk
            later = bounds[number : number + num_together]
            room = fresh_memory(sum(codec.max_bytes(until - since) for since, until in later))
        wanted_N = _wanted(values_P, feedback_P, start, stop, scratch[: stop - start])
        length = codec.encode(wanted_N, room)
        yield room[:length]
        room = room[length:]


def room_for(codec: Codec, num_values: int) -> memoryview:
    """Memory for the payloads of all chunks of a vector, one after the other."""
    last = num_chunks(num_values) - 1
    start, stop = chunk_bounds(num_values, last)
    num_bytes = last * codec.max_bytes(chunk_values(num_values)) + codec.max_bytes(stop - start)
    return np.empty(num_bytes, np.uint8).data


def fresh_memory(num_bytes: int) -> memoryview:
    """Writable memory that goes back to the system with its last view, not to the heap.

    Less than some pages are ordinary memory.
    """
    if num_bytes >= LEAST_MAPPED_BYTES and hasattr(mmap, "MAP_PRIVATE"):
        try:
            return memoryview(mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError:  # too many mappings
            pass
    return memoryview(bytearray(num_bytes))


def _wanted(
    values_P: Vector,
    feedback_P: Vector | None,
    start: int,
    stop: int,
    out_N: Vector | None = None,
) -> Vector:
    """What a chunk should say: its values, and what was left out before."""
    before_N = np.float32(0) if feedback_P is None else feedback_P[start:stop]
    return np.add(values_P[start:stop], before_N, out=out_N)
