"""A replica that trains nothing: it contributes what it was given when it is let through.

P = values of the vector
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

import numpy as np
from blake3 import blake3

from experiments.testbed import vectors
from zoonet.averaging import STATE_CHUNK_BYTES, root_of
from zoonet.averaging.replica import Mix
from zoonet.exact import Vector
from zoonet.ranges import Ranges, count


class GatedReplica:
    """See `zoonet.averaging.Replica`. Its parameters are the last mean, its momentum is zero.

    `arrived` is set while a round's training waits at the gate.
    """

    def __init__(self, num_values: int) -> None:
        self.num_parameters = num_values
        self.slots_per_s = 0.0
        self.num_trained = 0
        self.carried: Ranges = ()
        self.arrived = asyncio.Event()
        self.contribution_P = np.zeros(num_values, np.float32)
        self.mean_P = np.zeros(num_values, np.float32)
        self.state_digest = _digest_of(self.mean_P)
        self._gate = asyncio.Event()
        self._moved = asyncio.Condition()
        self._staged: tuple[bytes, Vector] = (b"", self.mean_P)

    def open_gate(self) -> None:
        """Let the round that waits through, and those that are played in its place."""
        self._gate.set()

    def close_gate(self) -> None:
        """The next round waits."""
        self._gate.clear()

    async def train(
        self,
        slots: Ranges,
        *,
        steps: int,
        num_done: int,
        num_planned: int,
        stops: Sequence[int] = (),
        mix: Mix | None = None,
    ) -> Ranges:
        self.num_trained = 0
        self.arrived.set()
        await self._gate.wait()
        self.arrived.clear()
        self.num_trained = count(slots)
        self.carried = slots
        return slots

    def stop(self) -> None:
        """A round is never cut short: who is told to hurry has opened the gate already."""

    async def pseudo_gradient(self) -> Vector:
        return self.contribution_P

    async def stage(self, mean_P: Vector) -> bytes:
        self._staged = (await asyncio.to_thread(_digest_of, mean_P), mean_P)
        return self._staged[0]

    async def commit(self, state: bytes, *, is_merged: bool) -> bool:
        if self._staged[0] != state:
            return False
        if is_merged:
            self.carried = ()
        await self._move(*self._staged)
        return True

    async def drop_local(self) -> None:
        """Nothing is lost: there is no local work but the next contribution."""
        self.carried = ()

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        return _chunk_digests(self.mean_P) if state == self.state_digest else None

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        if state != self.state_digest:
            return None
        raw = vectors.raw(self.mean_P)
        sizes = _chunk_sizes(len(raw))
        if index >= len(sizes):
            return bytes(sizes[index - len(sizes)])
        return bytes(raw[index * STATE_CHUNK_BYTES :][: sizes[index]])

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        raw = b"".join(chunks[: len(chunks) // 2])
        await self._move(state, np.frombuffer(raw, np.float32).copy())

    async def _move(self, state: bytes, mean_P: Vector) -> None:
        async with self._moved:
            self.state_digest, self.mean_P = state, mean_P
            self._moved.notify_all()

    async def reach(self, state: bytes) -> None:
        """Wait until this is the state, by the round's own mean or by fetching it."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.state_digest == state)


def _chunk_sizes(num_bytes: int) -> list[int]:
    starts = range(0, num_bytes, STATE_CHUNK_BYTES)
    return [min(STATE_CHUNK_BYTES, num_bytes - start) for start in starts]


def _chunk_digests(mean_P: Vector) -> list[bytes]:
    raw = vectors.raw(mean_P)
    digests = []
    for number, size in enumerate(_chunk_sizes(len(raw))):
        digests.append(blake3(raw[number * STATE_CHUNK_BYTES :][:size]).digest())
    return digests + [_zeros_digest(size) for size in _chunk_sizes(len(raw))]


def _digest_of(mean_P: Vector) -> bytes:
    return root_of(_chunk_digests(mean_P))


@cache
def _zeros_digest(num_bytes: int) -> bytes:
    return blake3(bytes(num_bytes)).digest()
