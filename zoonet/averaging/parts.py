"""Slices of vectors on the wire: who asks for which, and their bytes in frames.

N = one slice of the flat parameters
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from msgspec import Struct

from zoonet.crypto import PeerId, short
from zoonet.errors import (
    InvalidPart,
    PeerTimeout,
    ProtocolViolation,
    RoundFailed,
    TransportError,
)
from zoonet.exact import Vector
from zoonet.records.kinds import Digest
from zoonet.transport import Stream

FRAME_BYTES: Final = 128 * 1024


class PartHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """Opens a stream on which a contributor sends one slice of its pseudo-gradient."""

    attempt: Digest


class Received(Struct, frozen=True, forbid_unknown_fields=True):
    """The reducer has the whole part."""


class MeanRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks a contributor for the mean of its slice, waiting until it is there."""

    attempt: Digest


class MeanHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """What follows: the mean in frames; another header, later; or nothing, as parts are missing."""

    status: Literal["ready", "waiting", "failed"]


def slice_bounds(num_parameters: int, num_slices: int) -> list[tuple[int, int]]:
    """Cut [0, num_parameters) into slices whose sizes differ by at most one."""
    base, rest = divmod(num_parameters, num_slices)
    bounds = []
    start = 0
    for index in range(num_slices):
        stop = start + base + (1 if index < rest else 0)
        bounds.append((start, stop))
        start = stop
    return bounds


async def send_vector(stream: Stream, vector_N: Vector, silence_s: float) -> None:
    """Send all values. Raises TransportError, or TimeoutError where the other side takes none."""
    raw = np.ascontiguousarray(vector_N).view(np.uint8).data
    for offset in range(0, len(raw), FRAME_BYTES):
        async with asyncio.timeout(silence_s):
            await stream.send(raw[offset : offset + FRAME_BYTES])


async def receive_vector(
    stream: Stream, size: int, silence_s: float, on_bytes: Callable[[], None]
) -> Vector:
    """Receive exactly `size` finite fp32 values, in whole frames.

    Raises InvalidPart or TransportError.
    """
    vector_N = np.empty(size, dtype="<f4")
    raw = vector_N.view(np.uint8).data
    filled = 0
    while filled < len(raw):
        expected = min(FRAME_BYTES, len(raw) - filled)
        try:
            async with asyncio.timeout(silence_s):
                frame = await stream.receive(FRAME_BYTES)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(stream.peer_id)} stalled in a part") from error
        if len(frame) != expected:
            raise InvalidPart(stream.peer_id, f"{len(frame)} bytes at {filled} of {len(raw)}")
        raw[filled : filled + len(frame)] = frame
        if not np.isfinite(vector_N[filled // 4 : (filled + len(frame)) // 4]).all():
            raise InvalidPart(stream.peer_id, "non-finite values")
        filled += len(frame)
        on_bytes()
    return vector_N


class blaming:
    """Turn a peer's transport failure into a RoundFailed that names it."""

    def __init__(self, peer: PeerId) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TransportError | ProtocolViolation | TimeoutError):
            # Whatever the transfer failed by, these two do not get on.
            reason = f"peer={short(self._peer)} {error or 'was silent'}"
            raise RoundFailed(reason, missing=frozenset({self._peer})) from error
