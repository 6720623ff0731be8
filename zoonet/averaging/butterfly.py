"""The first form of the all-reduce: a butterfly over streams, all or nothing.

The vector is cut into one slice for each contributor of an attempt. Every contributor sends slice
i to the i-th contributor, which averages the parts in the order of peer ids and serves the mean's
bytes, unchanged, to everybody who asks: replicas are bit-identical. If one part is missing the
whole attempt fails by name, and the coordinator starts another without who is missing.

P = flat parameters, N = one slice of them
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
from msgspec import Struct, msgpack

from zoonet.averaging.messages import Attempt, Peers
from zoonet.crypto import PeerId, short
from zoonet.errors import (
    InvalidPart,
    PeerTimeout,
    ProtocolViolation,
    RoundFailed,
    TransportError,
)
from zoonet.exact import Vector, weighted_mean
from zoonet.ranges import count
from zoonet.records.kinds import Digest
from zoonet.transport import Stream, Transport, receive_request, send_reply
from zoonet.transport.calls import parse_reply

FRAME_BYTES: Final = 512 * 1024
INLINE_BYTES: Final = 1024 * 1024  # arithmetic on less than this stays on the event loop
NUM_KEPT_ATTEMPTS: Final = 4

log = logging.getLogger(__name__)


class Averager(Protocol):
    """The seam of the data plane: how an attempt's contributions become one mean."""

    async def average(self, attempt: Attempt, contribution_P: Vector | None) -> Vector:
        """Return the mean (P,) of all contributions, weighted by their number of slots.

        `contribution_P` is None for a follower that only receives. Raises RoundFailed, naming
        who is missing. Safe to cancel; the contribution is not changed.
        """
        ...


class PartHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """Opens a stream on which a contributor sends one slice of its pseudo-gradient."""

    attempt: Digest


class Received(Struct, frozen=True, forbid_unknown_fields=True):
    """The reducer has the whole part."""


class MeanRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for the mean of a slice, waiting until it is there."""

    attempt: Digest
    slice_index: int


class MeanHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """The mean follows in frames, or nothing does because these peers are missing."""

    missing: Peers = ()


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


async def _compute(num_bytes: int, function: Callable[[], Vector]) -> Vector:
    """Run arithmetic, in a thread where there is much of it (numpy releases the GIL)."""
    if num_bytes < INLINE_BYTES:
        return function()
    return await asyncio.to_thread(function)


class _Reduction:
    """What one peer knows of one attempt."""

    def __init__(self, attempt: Attempt, num_parameters: int, me: PeerId) -> None:
        self.attempt = attempt
        self.bounds = slice_bounds(num_parameters, len(attempt.contributors))
        self.weights = [count(share.slots) for share in attempt.contributions]
        self.mine = attempt.contributors.index(me) if me in attempt.contributors else -1
        self.parts: dict[PeerId, Vector] = {}
        self.means: dict[int, Vector] = {}
        self.missing: frozenset[str] = frozenset()
        self.is_ended = False
        self.changed = asyncio.Condition()

    async def note(self, **fields: object) -> None:
        """Set fields and wake whoever waits on them."""
        async with self.changed:
            for name, value in fields.items():
                setattr(self, name, value)
            self.changed.notify_all()


class Butterfly:
    """An `Averager` in which every contributor reduces one slice.

    `silence_s` is how long a peer may send nothing in the middle of a transfer.
    """

    def __init__(
        self, transport: Transport, job_id: str, num_parameters: int, *, silence_s: float = 5.0
    ) -> None:
        self._transport = transport
        self._num_parameters = num_parameters
        self._silence_s = silence_s
        self._part_protocol = f"/zoonet/{job_id}/part/1"
        self._mean_protocol = f"/zoonet/{job_id}/mean/1"
        self._reductions: dict[bytes, _Reduction] = {}
        self._announced = asyncio.Condition()

    async def serve(self) -> None:
        """Begin to accept parts and to hand out means."""
        await self._transport.serve(self._part_protocol, self._take_part)
        await self._transport.serve(self._mean_protocol, self._hand_out)

    async def average(self, attempt: Attempt, contribution_P: Vector | None) -> Vector:
        """See `Averager.average`."""
        reduction = _Reduction(attempt, self._num_parameters, self._transport.peer_id)
        await self._announce(attempt.identifier(), reduction)
        try:
            async with asyncio.TaskGroup() as tasks:
                if contribution_P is not None and reduction.mine >= 0:
                    tasks.create_task(self._scatter(reduction, contribution_P))
                    tasks.create_task(self._reduce(reduction))
                for index in range(len(reduction.bounds)):
                    if index != reduction.mine:
                        tasks.create_task(self._gather(reduction, index))
        except* RoundFailed as failures:
            missing = frozenset().union(
                *(error.missing for error in _leaves(failures) if isinstance(error, RoundFailed))
            )
            await reduction.note(missing=missing)
            raise RoundFailed("an attempt failed", missing=missing) from failures
        finally:
            reduction.parts.clear()
            await reduction.note(is_ended=True)
        return np.concatenate([reduction.means[index] for index in range(len(reduction.bounds))])

    async def _announce(self, identifier: bytes, reduction: _Reduction) -> None:
        async with self._announced:
            self._reductions[identifier] = reduction
            while len(self._reductions) > NUM_KEPT_ATTEMPTS:
                del self._reductions[next(iter(self._reductions))]
            self._announced.notify_all()

    async def _known(self, identifier: bytes) -> _Reduction:
        """Wait for the attempt to be known here too: the coordinator tells everyone at once."""
        try:
            async with asyncio.timeout(self._silence_s), self._announced:
                await self._announced.wait_for(lambda: identifier in self._reductions)
        except TimeoutError as error:
            raise PeerTimeout("an attempt that is not known here") from error
        return self._reductions[identifier]

    # --- sending ------------------------------------------------------------------------------

    async def _scatter(self, reduction: _Reduction, contribution_P: Vector) -> None:
        identifier = reduction.attempt.identifier()
        async with asyncio.TaskGroup() as tasks:
            for index, peer in enumerate(reduction.attempt.contributors):
                start, stop = reduction.bounds[index]
                part_N = contribution_P[start:stop]
                if index == reduction.mine:
                    async with reduction.changed:
                        reduction.parts[peer] = part_N
                        reduction.changed.notify_all()
                else:
                    tasks.create_task(self._send_part(peer, identifier, part_N))

    async def _send_part(self, peer: PeerId, identifier: bytes, part_N: Vector) -> None:
        with _blaming(peer):
            async with asyncio.timeout(self._silence_s):
                stream = await self._transport.open(peer, self._part_protocol)
            try:
                await stream.send(_encode(PartHeader(identifier)))
                await _send_vector(stream, part_N, self._silence_s)
                async with asyncio.timeout(self._silence_s):
                    parse_reply(peer, await stream.receive(1024), Received)
            finally:
                await stream.close()

    async def _gather(self, reduction: _Reduction, index: int) -> None:
        """Fetch one slice's mean from its reducer; wait as long as it says it is waiting."""
        peer = reduction.attempt.contributors[index]
        start, stop = reduction.bounds[index]
        request = MeanRequest(reduction.attempt.identifier(), index)
        with _blaming(peer):
            async with asyncio.timeout(self._silence_s):
                stream = await self._transport.open(peer, self._mean_protocol)
            try:
                await stream.send(_encode(request))
                header = await self._wait_for_mean(stream)
                if header.missing:
                    raise RoundFailed("the reducer misses parts", missing=frozenset(header.missing))
                mean_N = await _receive_vector(stream, stop - start, self._silence_s)
            finally:
                await stream.close()
        async with reduction.changed:
            reduction.means[index] = mean_N
            reduction.changed.notify_all()

    async def _wait_for_mean(self, stream: Stream) -> MeanHeader:
        # The reducer itself gives up after silence_s without a part; allow it that long twice.
        async with asyncio.timeout(3 * self._silence_s):
            return parse_reply(stream.peer_id, await stream.receive(64 * 1024), MeanHeader)

    # --- reducing -----------------------------------------------------------------------------

    async def _reduce(self, reduction: _Reduction) -> None:
        contributors = reduction.attempt.contributors
        try:
            await self._all_parts(reduction)
        except TimeoutError as error:
            missing = frozenset(contributors) - set(reduction.parts)
            raise RoundFailed("parts did not arrive", missing=missing) from error
        if reduction.missing:
            raise RoundFailed("a part was refused", missing=reduction.missing)
        parts = [reduction.parts[peer] for peer in contributors]
        num_bytes = sum(part.nbytes for part in parts)
        mean_N = await _compute(num_bytes, lambda: weighted_mean(parts, reduction.weights))
        async with reduction.changed:
            reduction.means[reduction.mine] = mean_N
            reduction.changed.notify_all()

    async def _all_parts(self, reduction: _Reduction) -> None:
        """Wait until every part is here or one was refused. TimeoutError where none comes."""
        num_contributors = len(reduction.attempt.contributors)
        async with reduction.changed:
            while len(reduction.parts) < num_contributors and not reduction.missing:
                async with asyncio.timeout(2 * self._silence_s):
                    await reduction.changed.wait()

    async def _take_part(self, stream: Stream) -> None:
        """Serve one contributor's part. What is wrong with it costs that contribution alone."""
        header = await receive_request(stream, PartHeader)
        reduction = await self._known(header.attempt)
        peer = stream.peer_id
        if peer not in reduction.attempt.contributors or reduction.mine < 0:
            raise ProtocolViolation(peer, "a part of an attempt that it is no contributor of")
        if peer in reduction.parts or reduction.is_ended:
            raise ProtocolViolation(peer, "a part that came twice or too late")
        start, stop = reduction.bounds[reduction.mine]
        try:
            part_N = await _receive_vector(stream, stop - start, self._silence_s)
        except InvalidPart as error:
            log.warning("refused a part: %s", error)
            await reduction.note(missing=reduction.missing | {peer})
            raise
        async with reduction.changed:
            reduction.parts[peer] = part_N
            reduction.changed.notify_all()
        await send_reply(stream, Received())

    async def _hand_out(self, stream: Stream) -> None:
        """Serve a slice's mean once it is known."""
        request = await receive_request(stream, MeanRequest)
        reduction = await self._known(request.attempt)
        if not 0 <= request.slice_index < len(reduction.bounds):
            raise ProtocolViolation(stream.peer_id, f"a slice {request.slice_index}")
        async with reduction.changed:
            await reduction.changed.wait_for(
                lambda: request.slice_index in reduction.means
                or reduction.missing
                or reduction.is_ended
            )
        mean_N = reduction.means.get(request.slice_index)
        if mean_N is None:
            await send_reply(stream, MeanHeader(tuple(sorted(reduction.missing))[:256]))
            return
        await send_reply(stream, MeanHeader())
        await _send_vector(stream, mean_N, self._silence_s)


class _blaming:
    """Turn a peer's transport failure into a RoundFailed that names it."""

    def __init__(self, peer: PeerId) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TransportError | ProtocolViolation | TimeoutError):
            reason = f"peer={short(self._peer)} {error or 'was silent'}"
            raise RoundFailed(reason, missing=frozenset({self._peer})) from error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _encode(message: Struct) -> bytes:
    return msgpack.encode(message)


async def _send_vector(stream: Stream, vector_N: Vector, silence_s: float) -> None:
    raw = np.ascontiguousarray(vector_N).view(np.uint8).data
    for offset in range(0, len(raw), FRAME_BYTES):
        async with asyncio.timeout(silence_s):
            await stream.send(raw[offset : offset + FRAME_BYTES])


async def _receive_vector(stream: Stream, size: int, silence_s: float) -> Vector:
    """Receive exactly `size` finite fp32 values. Raises InvalidPart or TransportError."""
    vector_N = np.empty(size, dtype="<f4")
    raw = vector_N.view(np.uint8).data
    filled = 0
    while filled < len(raw):
        try:
            async with asyncio.timeout(silence_s):
                frame = await stream.receive(FRAME_BYTES)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(stream.peer_id)} stalled in a part") from error
        if not frame or len(frame) > len(raw) - filled:
            raise InvalidPart(stream.peer_id, f"{len(frame)} bytes at {filled} of {len(raw)}")
        raw[filled : filled + len(frame)] = frame
        filled += len(frame)
    if not np.isfinite(vector_N).all():
        raise InvalidPart(stream.peer_id, "non-finite values")
    return vector_N
