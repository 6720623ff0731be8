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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
from blake3 import blake3
from msgspec import msgpack

from zoonet.averaging.messages import Attempt
from zoonet.averaging.parts import (
    MeanHeader,
    MeanRequest,
    PartHeader,
    Received,
    blaming,
    receive_vector,
    send_vector,
    slice_bounds,
)
from zoonet.crypto import PeerId
from zoonet.errors import (
    InvalidPart,
    PeerTimeout,
    ProtocolViolation,
    RoundFailed,
)
from zoonet.exact import Vector, weighted_mean
from zoonet.ranges import count
from zoonet.transport import Stream, Transport, receive_request, send_reply
from zoonet.transport.calls import parse_reply

INLINE_BYTES: Final = 1024 * 1024  # arithmetic on less than this stays on the event loop
NUM_KEPT_ATTEMPTS: Final = 4
MAX_EARLY: Final = 8  # streams of one peer that wait for an attempt to be known here
PATIENCE: Final = 8.0  # how much longer than half of the others one may take

T = TypeVar("T")

log = logging.getLogger(__name__)


class AttemptFailed(RoundFailed):
    """An attempt that cannot be finished.

    `missing` failed this peer; `blocked` told it that others failed them.
    """

    def __init__(
        self, message: str, *, missing: frozenset[str] = frozenset(), blocked: frozenset[str]
    ) -> None:
        super().__init__(message, missing=missing)
        self.blocked = blocked


@dataclass(frozen=True, slots=True)
class Mean:
    """What an attempt came to: the mean (P,), and digests of its slices by contributor."""

    mean_P: Vector
    slices: tuple[bytes, ...]


class Averager(Protocol):
    """The seam of the data plane: how an attempt's contributions become one mean."""

    async def average(
        self, attempt: Attempt, contribution_P: Vector | None, followers: frozenset[PeerId]
    ) -> Mean:
        """Return the mean of all contributions, weighted by their number of slots.

        `contribution_P` (P,) is None for a follower that only receives; `followers` are all who
        may receive. Raises AttemptFailed, naming who is missing. Safe to cancel; the contribution
        is not changed.
        """
        ...


async def _compute(num_bytes: int, function: Callable[[], T]) -> T:
    """Run arithmetic, in a thread where there is much of it (numpy releases the GIL)."""
    if num_bytes < INLINE_BYTES:
        return function()
    return await asyncio.to_thread(function)


class _Reduction:
    """What one peer knows of one attempt."""

    def __init__(
        self, attempt: Attempt, num_parameters: int, me: PeerId, followers: frozenset[PeerId]
    ) -> None:
        self.attempt = attempt
        self.followers = followers
        self.bounds = slice_bounds(num_parameters, len(attempt.contributors))
        self.weights = [count(share.slots) for share in attempt.contributions]
        self.mine = attempt.contributors.index(me) if me in attempt.contributors else -1
        self.sending: set[PeerId] = set()  # whose part is on its way, or here
        self.parts: dict[PeerId, Vector] = {}
        self.means: dict[int, Vector] = {}
        self.digests: dict[int, bytes] = {}
        self.refused: frozenset[str] = frozenset()
        self.is_ended = False
        self.began = self.moved = asyncio.get_running_loop().time()
        self.changed = asyncio.Condition()

    async def note(self) -> None:
        """Wake whoever waits for a change."""
        async with self.changed:
            self.changed.notify_all()

    def on_bytes(self) -> None:
        """Something of a part has arrived."""
        self.moved = asyncio.get_running_loop().time()

    @property
    def has_ended_without(self) -> bool:
        """There will be no mean of this peer's slice."""
        return self.is_ended and self.mine not in self.means


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
        self._num_early: Counter[PeerId] = Counter()

    async def serve(self) -> None:
        """Begin to accept parts and to hand out means."""
        await self._transport.serve(self._part_protocol, self._take_part)
        await self._transport.serve(self._mean_protocol, self._hand_out)

    async def average(
        self, attempt: Attempt, contribution_P: Vector | None, followers: frozenset[PeerId]
    ) -> Mean:
        """See `Averager.average`."""
        me = self._transport.peer_id
        reduction = _Reduction(attempt, self._num_parameters, me, followers)
        await self._announce(attempt.identifier(), reduction)
        try:
            async with asyncio.TaskGroup() as tasks:
                if contribution_P is not None and reduction.mine >= 0:
                    tasks.create_task(self._scatter(reduction, contribution_P))
                    tasks.create_task(self._reduce(reduction))
                for index in range(len(reduction.bounds)):
                    if index != reduction.mine:
                        tasks.create_task(self._gather(reduction, index))
                tasks.create_task(self._watch_means(reduction))
            return _assembled(reduction)
        except* RoundFailed as failures:
            raise _one_failure(failures) from failures
        finally:
            reduction.is_ended = True
            reduction.parts.clear()
            for index in set(reduction.means) - {reduction.mine}:
                del reduction.means[index]
            await reduction.note()

    async def _announce(self, identifier: bytes, reduction: _Reduction) -> None:
        async with self._announced:
            self._reductions[identifier] = reduction
            while len(self._reductions) > NUM_KEPT_ATTEMPTS:
                del self._reductions[next(iter(self._reductions))]
            self._announced.notify_all()

    async def _known(self, identifier: bytes, asker: PeerId) -> _Reduction:
        """Wait for the attempt to be known here too: the coordinator tells everyone at once."""
        if identifier not in self._reductions:
            if self._num_early[asker] >= MAX_EARLY:
                raise ProtocolViolation(asker, "too many streams of attempts not known here")
            self._num_early[asker] += 1
            try:
                async with asyncio.timeout(self._silence_s), self._announced:
                    await self._announced.wait_for(lambda: identifier in self._reductions)
            except TimeoutError as error:
                raise PeerTimeout("an attempt that is not known here") from error
            finally:
                self._num_early[asker] -= 1
                if not self._num_early[asker]:
                    del self._num_early[asker]
        reduction = self._reductions[identifier]
        if asker not in reduction.followers:
            raise ProtocolViolation(asker, "an attempt that it has no part in")
        return reduction

    # --- sending ------------------------------------------------------------------------------

    async def _scatter(self, reduction: _Reduction, contribution_P: Vector) -> None:
        identifier = reduction.attempt.identifier()
        async with asyncio.TaskGroup() as tasks:
            for index, peer in enumerate(reduction.attempt.contributors):
                start, stop = reduction.bounds[index]
                part_N = contribution_P[start:stop]
                if index == reduction.mine:
                    reduction.parts[peer] = part_N
                    await reduction.note()
                else:
                    tasks.create_task(self._send_part(peer, identifier, part_N))

    async def _send_part(self, peer: PeerId, identifier: bytes, part_N: Vector) -> None:
        with blaming(peer):
            async with asyncio.timeout(self._silence_s):
                stream = await self._transport.open(peer, self._part_protocol)
            try:
                await stream.send(msgpack.encode(PartHeader(identifier)))
                await send_vector(stream, part_N, self._silence_s)
                async with asyncio.timeout(self._silence_s):
                    parse_reply(peer, await stream.receive(1024), Received)
            finally:
                await stream.close()

    async def _gather(self, reduction: _Reduction, index: int) -> None:
        """Fetch one slice's mean from its reducer; wait as long as it says it is waiting."""
        peer = reduction.attempt.contributors[index]
        start, stop = reduction.bounds[index]
        with blaming(peer):
            async with asyncio.timeout(self._silence_s):
                stream = await self._transport.open(peer, self._mean_protocol)
            try:
                await stream.send(msgpack.encode(MeanRequest(reduction.attempt.identifier())))
                await self._wait_for_mean(stream)
                mean_N = await receive_vector(stream, stop - start, self._silence_s, _nobody)
            finally:
                await stream.close()
        await self._keep_mean(reduction, index, mean_N)

    async def _wait_for_mean(self, stream: Stream) -> None:
        while True:
            async with asyncio.timeout(3 * self._silence_s):
                frame = await stream.receive(1024)
            match parse_reply(stream.peer_id, frame, MeanHeader).status:
                case "ready":
                    return
                case "failed":
                    blocked = frozenset({stream.peer_id})
                    raise AttemptFailed("the reducer misses parts", blocked=blocked)
                case "waiting":
                    continue

    async def _keep_mean(self, reduction: _Reduction, index: int, mean_N: Vector) -> None:
        reduction.digests[index] = await _compute(mean_N.nbytes, lambda: _digest_of(mean_N))
        reduction.means[index] = mean_N
        await reduction.note()

    async def _watch_means(self, reduction: _Reduction) -> None:
        """Bound the time that a few reducers may take beyond what the others took."""
        num_slices = len(reduction.bounds)
        async with reduction.changed:
            await reduction.changed.wait_for(lambda: 2 * len(reduction.means) >= num_slices)
            try:
                async with asyncio.timeout_at(self._limit(reduction, spare=4)):
                    await reduction.changed.wait_for(lambda: len(reduction.means) == num_slices)
            except TimeoutError as error:
                late = set(range(num_slices)) - set(reduction.means)
                missing = frozenset(reduction.attempt.contributors[index] for index in late)
                raise RoundFailed("means are late", missing=missing) from error

    def _limit(self, reduction: _Reduction, *, spare: int) -> float:
        """When those who are not done yet are too late, now that half of them are done."""
        now = asyncio.get_running_loop().time()
        return now + (PATIENCE - 1) * (now - reduction.began) + spare * self._silence_s

    # --- reducing -----------------------------------------------------------------------------

    async def _reduce(self, reduction: _Reduction) -> None:
        contributors = reduction.attempt.contributors
        try:
            await self._all_parts(reduction)
        except TimeoutError as error:
            missing = frozenset(contributors) - set(reduction.parts)
            raise RoundFailed("parts did not arrive", missing=missing) from error
        if reduction.refused:
            raise RoundFailed("a part was refused", missing=reduction.refused)
        parts = [reduction.parts[peer] for peer in contributors]
        num_bytes = sum(part.nbytes for part in parts)
        mean_N = await _compute(num_bytes, lambda: weighted_mean(parts, reduction.weights))
        await self._keep_mean(reduction, reduction.mine, mean_N)

    async def _all_parts(self, reduction: _Reduction) -> None:
        """Wait until every part is here or one was refused.

        Raises TimeoutError where nothing comes any more, or a few take far longer than others.
        """
        num_others = len(reduction.attempt.contributors) - 1
        limit = float("inf")
        async with reduction.changed:
            while len(reduction.parts) <= num_others and not reduction.refused:
                num_here = len(reduction.parts) - 1  # of others
                if num_here > 0 and 2 * num_here >= num_others and limit == float("inf"):
                    limit = self._limit(reduction, spare=2)
                deadline = min(limit, reduction.moved + 2 * self._silence_s)
                if asyncio.get_running_loop().time() >= deadline:
                    raise TimeoutError
                try:
                    async with asyncio.timeout_at(deadline):
                        await reduction.changed.wait()
                except TimeoutError:
                    continue  # unless something has moved meanwhile

    async def _take_part(self, stream: Stream) -> None:
        """Serve one contributor's part. What is wrong with it costs that contribution alone."""
        header = await receive_request(stream, PartHeader)
        peer = stream.peer_id
        reduction = await self._known(header.attempt, peer)
        if peer not in reduction.attempt.contributors or reduction.mine < 0:
            raise ProtocolViolation(peer, "a part of an attempt that it is no contributor of")
        if peer in reduction.sending or reduction.is_ended:
            raise ProtocolViolation(peer, "a part that came twice or too late")
        reduction.sending.add(peer)
        start, stop = reduction.bounds[reduction.mine]
        try:
            part_N = await receive_vector(stream, stop - start, self._silence_s, reduction.on_bytes)
        except InvalidPart as error:
            log.warning("refused a part: %s", error)
            reduction.refused |= {peer}
            await reduction.note()
            raise
        if not reduction.is_ended:
            reduction.parts[peer] = part_N
        await reduction.note()
        await send_reply(stream, Received())

    async def _hand_out(self, stream: Stream) -> None:
        """Serve the mean of this peer's slice once it is known."""
        request = await receive_request(stream, MeanRequest)
        reduction = await self._known(request.attempt, stream.peer_id)
        if reduction.mine < 0:
            raise ProtocolViolation(stream.peer_id, "a mean from who is no contributor")
        while reduction.mine not in reduction.means and not reduction.has_ended_without:
            try:
                async with asyncio.timeout(self._silence_s), reduction.changed:
                    await reduction.changed.wait()
            except TimeoutError:
                await send_reply(stream, MeanHeader("waiting"))
        mean_N = reduction.means.get(reduction.mine)
        if mean_N is None:
            await send_reply(stream, MeanHeader("failed"))
            return
        await send_reply(stream, MeanHeader("ready"))
        await send_vector(stream, mean_N, self._silence_s)


def _assembled(reduction: _Reduction) -> Mean:
    indices = range(len(reduction.bounds))
    mean_P = np.concatenate([reduction.means[index] for index in indices])
    return Mean(mean_P, tuple(reduction.digests[index] for index in indices))


def _one_failure(failures: BaseExceptionGroup[RoundFailed]) -> AttemptFailed:
    """What all parts of an attempt that failed say together."""
    missing: frozenset[str] = frozenset()
    blocked: frozenset[str] = frozenset()
    for error in _leaves(failures):
        if isinstance(error, RoundFailed):
            missing |= error.missing
        if isinstance(error, AttemptFailed):
            blocked |= error.blocked
    return AttemptFailed("an attempt failed", missing=missing, blocked=blocked)


def _digest_of(mean_N: Vector) -> bytes:
    return blake3(mean_N.view(np.uint8).data).digest()


def _nobody() -> None:
    """Whom progress is told where nobody wants to know."""


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
