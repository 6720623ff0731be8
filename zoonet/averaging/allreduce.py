"""The all-reduce of a job's rounds, over trees of lanes: the asynchronous edge of `Reduction`.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from zoonet.averaging.chunks import DIGEST_BYTES, Header, Kind, decode_header, slice_digests
from zoonet.averaging.landing import Buffers
from zoonet.averaging.lateness import QUIET_S, Lateness
from zoonet.averaging.links import LinkBook, PeerLinks
from zoonet.averaging.messages import Attempt
from zoonet.averaging.outlets import Outlets
from zoonet.averaging.payload import Payload, make_payload
from zoonet.averaging.plan import chunk_values, num_chunks
from zoonet.averaging.reduction import Reduction
from zoonet.averaging.unheard import RoundKeys
from zoonet.averaging.wire import Wire
from zoonet.codecs import Codec
from zoonet.codecs import codec as codec_named
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, RoundFailed, WorkLost, ZoonetError
from zoonet.exact import Vector
from zoonet.transport import Lanes

INLINE_BYTES: Final = 1024 * 1024  # arithmetic on less than this stays on the event loop
TICK_S: Final = 0.1
STALL_S: Final = 0.5  # after a tick that took so long, a machine was busy with something else
ALIVE_S: Final = 0.25  # how often who waits for others says so
MEET_S: Final = 1.0  # for lanes to open ahead
MAX_MET: Final = 16  # peers to which they do: each lane over a long way has four threads
BROKEN_S: Final = 0.15  # for a peer whose lane has ended to come back on another one

FP32: Final = codec_named("fp32")

T = TypeVar("T")

log = logging.getLogger(__name__)


class AttemptFailed(RoundFailed):
    """An attempt that cannot be finished because of `missing`."""


class Averager(Protocol):
    """The seam of the data plane: how an attempt's contributions become one mean."""

    async def meet(self, peers: Collection[PeerId]) -> None:
        """Open lanes to peers that will probably share a round with this one, or a few of them.

        Returns once they are open or cannot be, at the latest after `MEET_S`; that goes on where
        it is cancelled.
        """
        ...

    async def commit(self, contribution_P: Vector) -> bytes:
        """Take what this peer will contribute (P,), and return the digest that names it.

        The vector must not change until the next call. What still lies here of the round before
        is let go, but for its mean. Raises WorkLost where the job's codec cannot encode it.
        """
        ...

    def own_links(self) -> PeerLinks:
        """What this peer knows of its links, for the next plan."""
        ...

    async def average(self, attempt: Attempt) -> Vector:
        """Return the mean (P,) of all contributions, weighted by their number of slots.

        It stays as it is until the next round's first attempt. Raises AttemptFailed, naming who
        is missing. Safe to cancel: the next attempt of the same round goes on with what has been
        averaged.
        """
        ...

    def settle(self, *, is_certified: bool, is_merged: bool) -> None:
        """The round is over. `is_merged` tells whether this peer's contribution is in its mean."""
        ...

    async def slice_digests(self, number: int) -> tuple[bytes, ...]:
        """Digests of the means that each tree of that attempt's plan has brought here.

        Empty where the attempt is not the newest one, or not finished.
        """
        ...


class TreeAllReduce:
    """An `Averager` over lanes. `serve` it before use, `close` it after."""

    def __init__(
        self, lanes: Lanes, job_id: str, num_parameters: int, *, codec: Codec = FP32
    ) -> None:
        self._lanes = lanes
        self._channel = f"{job_id}/reduce/1"
        self._num_parameters = num_parameters
        self._outlets = Outlets(lanes, self._channel, self._note_broken)
        self._lock = threading.Lock()
        self._reduction: Reduction | None = None
        self._wire = Wire(codec)
        chunk_bytes = self._wire.max_bytes(chunk_values(num_parameters))
        self._buffers = Buffers(num_parameters, 0 if codec.is_exact else chunk_bytes)
        self._payload: Payload | None = None
        self._feedback_P: Vector | None = None  # what this peer's payloads have left out
        self._feedback_lock = asyncio.Lock()
        self._counted: list[Payload] = []  # that count, and that the feedback lacks yet
        self._round_keys = RoundKeys()
        self._broken: dict[PeerId, float] = {}  # whose lane has ended, and when
        self._lateness = Lateness(4 * num_parameters)
        self._first_attempt = (b"", 0.0)  # that began with nothing: its round, and when
        self._links = LinkBook()
        commitment_bytes = DIGEST_BYTES * num_chunks(num_parameters)
        self._scratch = memoryview(bytearray(max(chunk_bytes, commitment_bytes)))
        self._mean_P: Vector | None = None
        self._shared: memoryview | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Begin to accept chunks."""
        await self._lanes.serve(self._channel, self)

    async def close(self) -> None:
        """Stop, and end all lanes."""
        await self._lanes.unserve(self._channel)
        self._reduction = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outlets.close()

    def paths(self) -> dict[PeerId, str]:
        """How bytes travel to each peer: over shared memory, directly, through a relay."""
        return self._outlets.paths()

    def own_links(self) -> PeerLinks:
        """See `Averager.own_links`."""
        self._links.observe(self._lanes.links(), self._lanes.line())
        return self._links.own()

    async def meet(self, peers: Collection[PeerId]) -> None:
        """See `Averager.meet`."""
        me = self._lanes.peer_id
        # Of many those whose ids follow, so that all are met by equally many.
        others = sorted(set(peers) - {me}, key=lambda peer: (peer < me, peer))[:MAX_MET]
        opening = {
            self._spawn(self._outlets.open(peer))
            for peer in others
            if self._outlets.expect_ahead(peer)
        }
        if opening:
            await asyncio.wait(opening, timeout=MEET_S)

    async def commit(self, contribution_P: Vector) -> bytes:
        """See `Averager.commit`."""
        self._retire()
        await self._leave_out()
        async with self._feedback_lock:
            codec, feedback_P, shared = self._wire.codec, self._feedback_P, self._shared_buffer()
            try:
                self._payload = payload = await _compute(
                    contribution_P.nbytes,
                    lambda: make_payload(contribution_P, codec, feedback_P, shared=shared),
                )
            except ValueError as error:
                raise WorkLost(f"this round's work cannot be encoded: {error}") from error
        return payload.root

    # --- one attempt --------------------------------------------------------------------------

    def settle(self, *, is_certified: bool, is_merged: bool) -> None:
        """See `Averager.settle`."""
        self._wire.settle(is_certified=is_certified)
        if not is_certified:
            return
        if self._reduction is not None:
            self._reduction.release_parts()
        payload, self._payload = self._payload, None
        if payload is not None and is_merged and not payload.is_exact:
            self._counted.append(payload)
            self._spawn(self._leave_out())

    async def _leave_out(self) -> None:
        """Take note of what payloads that count have left out, before the next one is made."""
        async with self._feedback_lock:
            while self._counted:
                payload = self._counted.pop(0)
                self._feedback_P = await _compute(4 * self._num_parameters, payload.leave_out)

    async def slice_digests(self, number: int) -> tuple[bytes, ...]:
        """See `Averager.slice_digests`."""
        reduction = self._reduction
        if reduction is None or not reduction.is_complete or reduction.attempt.number != number:
            return ()
        mean_P = reduction.assembled()
        return await _compute(mean_P.nbytes, lambda: slice_digests(reduction.attempt, mean_P))

    async def average(self, attempt: Attempt) -> Vector:
        """See `Averager.average`."""
        reduction = self._reduction_of(attempt)
        began = self._loop.time()
        if attempt.number == 0:
            self._first_attempt = (reduction.round_key, began)
        self._lateness.begin()
        for peer in sorted(reduction.partners_in(attempt)):
            if self._outlets.expect(peer):
                self._spawn(self._outlets.open(peer))
        await _compute(4 * self._num_parameters, lambda: self._begin(reduction, attempt))
        self._spawn(self._say_alive(reduction, attempt))
        await self._finished(reduction, began)
        self._lateness.succeed()
        self._note_duration(reduction, attempt)
        return reduction.assembled()

    def _note_duration(self, reduction: Reduction, attempt: Attempt) -> None:
        """From the round's first attempt on, if this peer took part in it."""
        round_key, began = self._first_attempt
        if round_key == reduction.round_key:
            peers, elapsed_s = frozenset(attempt.contributors), self._loop.time() - began
            self._lateness.lasted(elapsed_s, peers, is_whole=attempt.number == 0)

    def _begin(self, reduction: Reduction, attempt: Attempt) -> None:
        reduction.adopt(attempt)
        self._lanes.ask_again()  # others may have begun before
        reduction.advance()

    def _reduction_of(self, attempt: Attempt) -> Reduction:
        reduction = self._reduction
        if reduction is not None and reduction.round_key == attempt.round_key():
            return reduction
        self._retire()
        self._wire.settle(is_certified=False)  # a round that was certified is settled already
        payload = self._payload if self._contributes(attempt) else None
        reduction = Reduction(
            attempt,
            self._lanes.peer_id,
            payload,
            self._mean_buffer(),
            self._wire,
            self._buffers,
            self._outlets.post,
            self._wake,
        )
        with self._lock:
            self._broken.clear()
            self._round_keys.begin(reduction.round_key, reduction.peers)
        self._reduction = reduction
        return reduction

    def _retire(self) -> None:
        """Let go of the last round, but for its mean."""
        reduction = self._reduction
        if reduction is None:
            return
        if reduction.retire():
            self._mean_P = None  # chunks of a round that was given up may still land there
        with self._lock:
            self._round_keys.end(reduction.round_key, reduction.peers)
        self._reduction = None

    def _contributes(self, attempt: Attempt) -> bool:
        return self._payload is not None and self._payload.root in attempt.roots

    def _shared_buffer(self) -> memoryview | None:
        """Memory for a payload that peers on the same host can read, where there are any."""
        if not self._wire.is_exact or "shm" not in self._outlets.paths().values():
            return None
        if self._shared is None or self._outlets.unsent_bytes:
            self._shared = self._lanes.allocate(4 * self._num_parameters)
        return self._shared

    def _mean_buffer(self) -> Vector:
        """A buffer for the mean: the last round's, unless somebody still reads from it."""
        if self._mean_P is None or self._outlets.unsent_bytes:
            self._outlets.drop()
            raw = self._lanes.allocate(4 * self._num_parameters)
            self._mean_P = np.frombuffer(raw, np.float32)
        return self._mean_P

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="all-reduce")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _say_alive(self, reduction: Reduction, attempt: Attempt) -> None:
        """Tell those who wait for this peer that it waits for others itself."""
        partners = reduction.partners_in(attempt)
        while not reduction.is_complete:
            await asyncio.sleep(ALIVE_S)
            if self._reduction is not reduction or reduction.attempt is not attempt:
                return  # there is another attempt, which says so itself
            header = reduction.alive()
            for peer in partners:
                self._outlets.post_if_idle(peer, header)

    async def _finished(self, reduction: Reduction, began: float) -> None:
        """Wait until the mean is here. Raises AttemptFailed."""
        listened = ticked = began
        while True:
            self._changed.clear()
            if reduction.is_complete:
                return
            now = self._loop.time()
            if now - ticked > STALL_S:
                listened = now  # this process itself has been away, and could hear nobody
            ticked = now
            self._raise_if_missing(reduction, began, listened)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _raise_if_missing(self, reduction: Reduction, began: float, listened: float) -> None:
        now = self._loop.time()
        with self._lock:
            broken = {peer for peer, since in self._broken.items() if now - since > BROKEN_S}
        contributors = set(reduction.attempt.contributors)
        awaited = reduction.awaited()
        owing = {one.peer for one in awaited if one.num_come < one.num_all}
        refused = reduction.refused & contributors
        silences = {peer: min(now - listened, self._lanes.silent_s(peer)) for peer in owing}
        begun = {one.peer for one in awaited if self._lanes.silent_s(one.peer) < now - began}
        silent = self._lateness.silent(silences, begun)
        late = begun & self._lateness.late(
            awaited,
            now - began,
            unserved=self._outlets.unserved(),
            unheard={peer for peer, silence_s in silences.items() if silence_s > QUIET_S},
            awake_s=now - listened,
        )
        partly = {peer: self._partly(reduction, peer) for peer in owing}
        stalled = begun & self._lateness.stalled(
            awaited,
            now - began,
            partly,
            unserved=self._outlets.unserved(),
            awake_s=now - listened,
        )
        missing = (refused | (broken & owing) | silent | late | stalled) & contributors
        if missing:
            if silent or late or stalled:
                self._lateness.accuse()
            why = [
                f"{label}={[short(peer) for peer in sorted(peers & missing)]}"
                for label, peers in (
                    ("refused", refused),
                    ("broken", broken),
                    ("silent", silent),
                    ("late", late),
                    ("stalled", stalled),
                )
                if peers & missing
            ]
            raise AttemptFailed(" ".join(why), missing=frozenset(missing))

    def _partly(self, reduction: Reduction, peer: PeerId) -> float | None:
        arriving = self._lanes.arriving(peer)
        return None if arriving is None else reduction.partly(peer, arriving)

    def _wake(self) -> None:
        """Called from any thread."""
        self._loop.call_soon_threadsafe(self._changed.set)

    def _note_broken(self, peer_id: PeerId, why: str) -> None:
        with self._lock:
            self._broken[peer_id] = self._loop.time()
        log.debug("broken peer=%s: %s", short(peer_id), why)
        self._wake()

    # --- a sink of lanes ----------------------------------------------------------------------

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview | None:
        """See `zoonet.transport.Sink`."""
        parsed = _parse(peer_id, header)
        with self._lock:
            self._broken.pop(peer_id, None)
        reduction = self._reduction
        if reduction is not None and parsed.round_key == reduction.round_key:
            return reduction.admit(peer_id, parsed, num_bytes)
        with self._lock:
            is_foreign = self._round_keys.is_foreign(parsed.round_key, peer_id)
            is_over = self._round_keys.is_over(parsed.round_key, peer_id)
        if is_foreign:
            raise ProtocolViolation(peer_id, "a chunk of a round that it had no part in")
        if not is_over:
            return None  # perhaps of one that this peer is about to hear of
        if num_bytes > len(self._scratch):
            raise ProtocolViolation(peer_id, f"a chunk of {num_bytes} bytes")
        return self._scratch[:num_bytes]

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        """See `zoonet.transport.Sink`."""
        parsed = _parse(peer_id, header)
        reduction = self._reduction
        if reduction is not None and parsed.round_key == reduction.round_key:
            reduction.arrived(peer_id, parsed)
            if parsed.kind == Kind.COMMITMENT:
                self._lanes.ask_again()  # over another connection, parts may have overtaken it

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        """See `zoonet.transport.Sink`."""
        reduction = self._reduction
        if reduction is not None:
            reduction.forget(peer_id)
        self._note_broken(peer_id, str(error))


async def _compute(num_bytes: int, function: Callable[[], T]) -> T:
    """Run arithmetic, in a thread where there is much of it."""
    if num_bytes < INLINE_BYTES:
        return function()
    return await asyncio.to_thread(function)


def _parse(peer_id: PeerId, header: bytes) -> Header:
    try:
        return decode_header(header)
    except ValueError as error:
        raise ProtocolViolation(peer_id, f"no chunk header: {error}") from error
