"""Where payloads land: in their place in the mean, in a buffer to be added up, or out of sight.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.payload import fresh_memory, room_for
from zoonet.averaging.plan import chunk_bounds, chunk_values, num_chunks
from zoonet.averaging.wire import Wire
from zoonet.exact import Vector

KEPT_SHARE: Final = 8  # of a payload, what buffers may hold while no chunk needs them: one in 8

Key = tuple[int, Kind, int]  # sender, kind and chunk of a payload that is under way


class Buffers:
    """Chunk-sized buffers, used again from chunk to chunk and from round to round.

    Fresh memory is dear: the kernel clears each page of it. Thread safe.
    """

    def __init__(self, num_parameters: int, max_encoded_bytes: int = 0) -> None:
        self._num_values = chunk_values(num_parameters)
        self._max_kept = max(1, num_parameters // self._num_values // KEPT_SHARE)
        self._spare: list[Vector] = []
        self._encoded_bytes = max_encoded_bytes  # of a chunk, with a lossy codec
        self._spare_encoded: list[memoryview] = []

    def take(self, size: int) -> Vector:
        """A buffer of so many values, at most a chunk; they may be anything."""
        try:
            whole = self._spare.pop()
        except IndexError:
            whole = np.empty(self._num_values, np.float32)
        return whole[:size]

    def give_back(self, values_N: Vector) -> None:
        """Let a buffer that `take` returned be used for another chunk."""
        base: object = values_N.base
        if isinstance(base, memoryview):  # it was looked at as bytes meanwhile
            base = np.frombuffer(base, np.float32)
        whole = base if isinstance(base, np.ndarray) else values_N
        if whole.size == self._num_values:
            self._spare.append(whole)

    def take_encoded(self, num_bytes: int) -> memoryview:
        """Memory for a chunk as a lossy codec sends it."""
        try:
            whole = self._spare_encoded.pop()
        except IndexError:
            whole = fresh_memory(max(self._encoded_bytes, num_bytes))
        return whole[:num_bytes] if num_bytes <= len(whole) else fresh_memory(num_bytes)

    def give_back_encoded(self, payload: memoryview) -> None:
        """Let what `take_encoded` returned be used for another chunk; nobody may look at it."""
        whole = memoryview(payload.obj)
        if len(whole) == self._encoded_bytes:
            self._spare_encoded.append(whole)

    def settle(self) -> None:
        """Keep a few for the next round."""
        del self._spare[self._max_kept :]
        del self._spare_encoded[self._max_kept :]


class Landing:
    """The payloads of one round that are under way to this peer. One thread at a time."""

    def __init__(self, mean_P: Vector, wire: Wire, buffers: Buffers) -> None:
        self._mean_P = mean_P
        self._wire = wire
        self._buffers = buffers
        self._under_way: dict[Key, memoryview] = {}
        self._spilled: set[int] = set()  # chunks whose mean lies outside mean_P
        # the mean as it is sent, where that is kept: in one piece, not all over the heap
        is_kept = not (wire.is_exact or wire.is_repeatable)
        self._raw = room_for(wire.codec, mean_P.size) if is_kept else None
        self._has_raw: set[int] = set()  # chunks whose place in it has been given out
        self._nowhere = memoryview(bytearray(wire.max_bytes(chunk_values(mean_P.size))))

    @property
    def has_spilled(self) -> bool:
        """Some chunk's mean is not in its place, where something given up may still write."""
        return bool(self._spilled)

    @property
    def is_writing(self) -> bool:
        """Something that has begun may still write, perhaps into the mean."""
        return bool(self._under_way or self._spilled)

    def retire(self) -> None:
        """The round is over: what still comes lands anywhere else."""
        if self._raw is not None:
            self._raw = memoryview(b"")
            self._has_raw.update(range(num_chunks(self._mean_P.size)))

    def nowhere(self, num_bytes: int) -> memoryview:
        """A place where nobody looks."""
        return self._nowhere[:num_bytes]

    def begin(self, sender: int, header: Header, num_bytes: int) -> memoryview | None:
        """Where a payload goes; None where the same one is under way already.

        An exact one goes straight to its place, others are decoded later.
        """
        key = (sender, header.kind, header.chunk)
        if key in self._under_way:
            return None
        if header.kind == Kind.MEAN:
            place = self.raw_target(header.chunk)[:num_bytes]
        elif header.kind == Kind.COMMITMENT:
            place = fresh_memory(num_bytes)
        elif not self._wire.is_exact:
            place = self._buffers.take_encoded(num_bytes)
        else:
            place = self._buffers.take(num_bytes // 4).view(np.uint8).data
        self._under_way[key] = place
        return place

    def find(self, sender: int, header: Header) -> memoryview | None:
        """What has landed; None where it went nowhere."""
        return self._under_way.get((sender, header.kind, header.chunk))

    def end(self, sender: int, header: Header) -> None:
        """A payload has been looked at."""
        self._under_way.pop((sender, header.kind, header.chunk), None)

    def forget(self, sender: int | None) -> None:
        """What is under way from a sender will not arrive, but may still be written."""
        for key in [key for key in self._under_way if key[0] == sender]:
            if key[1] == Kind.MEAN:
                self._spilled.add(key[2])
            del self._under_way[key]

    def mean_target(self, number: int) -> Vector:
        """The chunk's place in the mean of an exact codec.

        Elsewhere, where somebody else may be writing there.
        """
        start, stop = chunk_bounds(self._mean_P.size, number)
        is_taken = any(kind == Kind.MEAN and at == number for _, kind, at in self._under_way)
        if is_taken or number in self._spilled:
            self._spilled.add(number)
            return np.empty(stop - start, np.float32)
        return self._mean_P[start:stop]

    def raw_target(self, number: int) -> memoryview:
        """Where a chunk of the mean goes as it is sent; with a lossy codec no place goes twice."""
        if self._wire.is_exact:
            return self.mean_target(number).view(np.uint8).data
        start, stop = chunk_bounds(self._mean_P.size, number)
        num_bytes = self._wire.max_bytes(stop - start)
        if self._raw is None or number in self._has_raw:
            return memoryview(bytearray(num_bytes))
        self._has_raw.add(number)
        at = number * self._wire.max_bytes(chunk_values(self._mean_P.size))
        return self._raw[at : at + num_bytes]
