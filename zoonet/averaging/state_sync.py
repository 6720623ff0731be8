"""Handing the outer state to a joiner: by chunks, from several members at once, each checked."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

from blake3 import blake3
from msgspec import Meta, Struct

from zoonet.averaging.replica import STATE_CHUNK_BYTES, Replica
from zoonet.crypto import PeerId, short
from zoonet.errors import DigestMismatch, ProtocolViolation, ShardUnavailable, TransportError
from zoonet.records.kinds import Digest
from zoonet.transport import (
    Refused,
    Stream,
    Transport,
    call,
    receive_request,
    send_refusal,
    send_reply,
    serve_calls,
)

MAX_CHUNKS = 1_000_000
CALL_TIMEOUT_S = 20.0
MAX_AT_ONCE = 4  # chunks on their way to one peer
NUM_ASKED = 4  # donors that are asked for the index at once
SILENT_S = 1.0  # without any answer, before one more is asked

log = logging.getLogger(__name__)


class IndexRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for the digests of all chunks of a state."""

    state: Digest


class ChunkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for one chunk of a state."""

    state: Digest
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]


Index = Annotated[list[Digest], Meta(max_length=MAX_CHUNKS)]


def root_of(digests: Sequence[bytes]) -> bytes:
    """A state's digest: BLAKE3 of its chunks' digests, one after the other."""
    return blake3(b"".join(digests)).digest()


def num_chunks(num_parameters: int) -> int:
    """Chunks of a state: those of the parameters, then those of the momentum."""
    return 2 * -(-4 * num_parameters // STATE_CHUNK_BYTES)


class StateSync:
    """Serves this replica's state and fetches others'."""

    def __init__(self, transport: Transport, job_id: str, replica: Replica) -> None:
        self._transport = transport
        self._replica = replica
        self._num_served: Counter[PeerId] = Counter()
        self._index_protocol = f"/zoonet/{job_id}/state-index/1"
        self._chunk_protocol = f"/zoonet/{job_id}/state-chunk/1"

    async def serve(self) -> None:
        """Begin to hand out the state."""
        await serve_calls(self._transport, self._index_protocol, IndexRequest, self._index)
        await self._transport.serve(self._chunk_protocol, self._hand_out_chunk)

    async def _index(self, peer: PeerId, request: IndexRequest) -> list[bytes]:
        digests = self._replica.chunk_digests(request.state)
        if digests is None:
            raise ShardUnavailable("this state is not, or no longer, held here")
        return digests

    async def _hand_out_chunk(self, stream: Stream) -> None:
        """Serve one chunk. Whoever asks for many at once and reads none holds but a few."""
        request = await receive_request(stream, ChunkRequest)
        peer = stream.peer_id
        if self._num_served[peer] >= MAX_AT_ONCE:
            await send_refusal(stream, f"{MAX_AT_ONCE} chunks at once are enough")
            return
        self._num_served[peer] += 1
        try:
            chunk = self._replica.read_chunk(request.state, request.index)
            if chunk is None:
                await send_refusal(stream, "this state is not, or no longer, held here")
            else:
                await send_reply(stream, chunk)
        finally:
            self._num_served[peer] -= 1
            if not self._num_served[peer]:
                del self._num_served[peer]

    async def fetch(
        self,
        state: bytes,
        donors: Sequence[PeerId],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fetch a state from the donors and adopt it.

        `on_progress` is told (chunks here, chunks in all). Raises ShardUnavailable where no
        donor has it any more. Cancelling leaves the replica as it was.
        """
        digests = await self._fetch_index(state, donors)
        fetching = _Fetching(state, digests)
        draining = {asyncio.create_task(self._drain(donor, fetching)) for donor in donors}
        try:
            while draining and not fetching.is_complete:
                _, draining = await asyncio.wait(draining, return_when=asyncio.FIRST_COMPLETED)
                if on_progress is not None:
                    on_progress(len(fetching.chunks), len(digests))
        finally:
            for task in draining:
                task.cancel()
            await asyncio.gather(*draining, return_exceptions=True)
        chunks = fetching.chunks
        if not fetching.is_complete:
            raise ShardUnavailable(
                f"got {len(chunks)} of {len(digests)} chunks of the state from {len(donors)} peers"
            )
        await self._replica.adopt(state, digests, [chunks[i] for i in range(len(digests))])
        log.info("fetched the outer state chunks=%d donors=%d", len(digests), len(donors))

    async def _fetch_index(self, state: bytes, donors: Sequence[PeerId]) -> list[bytes]:
        """Ask some donors at once, one more for each second of silence. The first good one wins."""
        waiting, room = list(donors), NUM_ASKED
        asking: set[asyncio.Task[list[bytes] | None]] = set()
        try:
            while waiting or asking:
                while waiting and len(asking) < room:
                    asking.add(asyncio.create_task(self._ask_index(state, waiting.pop(0))))
                done, asking = await asyncio.wait(
                    asking, timeout=SILENT_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    room += 1
                for answer in done:
                    if (digests := answer.result()) is not None:
                        return digests
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise ShardUnavailable(f"none of {len(donors)} peers holds the state")

    async def _ask_index(self, state: bytes, donor: PeerId) -> list[bytes] | None:
        """The digests of the state's chunks, or None where this donor cannot tell them."""
        size = num_chunks(self._replica.num_parameters)
        try:
            digests = await call(
                self._transport,
                donor,
                self._index_protocol,
                IndexRequest(state),
                Index,
                timeout_s=CALL_TIMEOUT_S,
                max_bytes=34 * size + 1024,
            )
        except (TransportError, ProtocolViolation) as error:
            log.debug("no state index from peer=%s: %s", short(donor), error)
            return None
        if len(digests) == size and root_of(digests) == state:
            return digests
        log.warning("peer=%s sent an index that is not that of the state", short(donor))
        return None

    async def _drain(self, donor: PeerId, fetching: _Fetching) -> None:
        """Fetch chunks from one donor until all are here, from whomever, or it fails."""
        while (index := fetching.next_index()) is not None:
            fetching.num_asked[index] += 1
            try:
                chunk = await call(
                    self._transport,
                    donor,
                    self._chunk_protocol,
                    ChunkRequest(fetching.state, index),
                    bytes,
                    timeout_s=CALL_TIMEOUT_S,
                    max_bytes=STATE_CHUNK_BYTES + 1024,
                )
                if blake3(chunk).digest() != fetching.digests[index]:
                    raise DigestMismatch(donor, f"chunk {index} of the state")
            except (TransportError, ProtocolViolation) as error:
                level = logging.DEBUG if isinstance(error, Refused) else logging.WARNING
                log.log(level, "donor lost: %s", error)
                return
            finally:
                fetching.num_asked[index] -= 1
            fetching.chunks[index] = chunk


class _Fetching:
    """Which chunks of a state are here, and which are being asked for."""

    def __init__(self, state: bytes, digests: list[bytes]) -> None:
        self.state = state
        self.digests = digests
        self.chunks: dict[int, bytes] = {}
        self.num_asked = [0] * len(digests)
        self._first = 0  # of those that are not here

    @property
    def is_complete(self) -> bool:
        return len(self.chunks) == len(self.digests)

    def next_index(self) -> int | None:
        """A chunk that nobody is asked for, or else that the fewest are: no donor is waited for."""
        while self._first in self.chunks:
            self._first += 1
        missing = (i for i in range(self._first, len(self.digests)) if i not in self.chunks)
        fewest: int | None = None
        for index in missing:
            if not self.num_asked[index]:
                return index
            if fewest is None or self.num_asked[index] < self.num_asked[fewest]:
                fewest = index
        return fewest
