"""Handing the outer state to a joiner: by chunks, from several members at once, each checked.

A joiner opens one stream to each donor and asks for several chunks ahead on it (`state_plan`), even
before it knows the chunks' digests. None is kept that is not checked against these, and the
digests against the state's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated

from blake3 import blake3
from msgspec import Meta, Struct, msgpack

from zoonet.averaging.replica import STATE_CHUNK_BYTES, Replica
from zoonet.averaging.state_plan import StatePlan
from zoonet.crypto import PeerId, short
from zoonet.errors import (
    DigestMismatch,
    PeerTimeout,
    ProtocolViolation,
    ShardUnavailable,
    StreamClosed,
    TransportError,
)
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
from zoonet.transport.calls import parse_reply

MAX_CHUNKS = 1_000_000
INDEX_PAGE = 65_536  # digests in one answer
CALL_TIMEOUT_S = 20.0
MAX_AT_ONCE = 4  # chunks on their way to one peer
NUM_ASKED = 4  # donors that are asked for the index at once
SILENT_S = 1.0  # without any answer, before one more is asked
LOOK_S = 0.05  # between two looks of an idle donor's task whether others are late

log = logging.getLogger(__name__)


class IndexRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for the digests of a state's chunks, INDEX_PAGE of them at most."""

    state: Digest
    start: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)] = 0


class ChunkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for one chunk of a state."""

    state: Digest
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]


IndexPage = Annotated[list[Digest], Meta(max_length=INDEX_PAGE)]


def root_of(digests: Sequence[bytes]) -> bytes:
    """A state's digest: BLAKE3 of its chunks' digests, one after the other."""
    return blake3(b"".join(digests)).digest()


def num_chunks(num_parameters: int) -> int:
    """Chunks of a state: those of the parameters, then those of the momentum."""
    return 2 * -(-4 * num_parameters // STATE_CHUNK_BYTES)


class StateSync:
    """Serves this replica's state and fetches others'.

    A donor that sent wrong bytes is in `distrusted`; it is asked again only where nobody else is
    left.
    """

    def __init__(self, transport: Transport, job_id: str, replica: Replica) -> None:
        self.distrusted: set[PeerId] = set()
        self._transport = transport
        self._replica = replica
        self._num_served: Counter[PeerId] = Counter()
        self._index_protocol = f"/zoonet/{job_id}/state-index/2"
        self._chunk_protocol = f"/zoonet/{job_id}/state-chunk/2"

    async def serve(self) -> None:
        """Begin to hand out the state."""
        await serve_calls(self._transport, self._index_protocol, IndexRequest, self._index)
        await self._transport.serve(self._chunk_protocol, self._hand_out_chunks)

    async def _index(self, peer: PeerId, request: IndexRequest) -> list[bytes]:
        digests = self._replica.chunk_digests(request.state)
        if digests is None:
            raise ShardUnavailable("this state is not, or no longer, held here")
        return digests[request.start : request.start + INDEX_PAGE]

    async def _hand_out_chunks(self, stream: Stream) -> None:
        """Serve one chunk after the other, until no more is asked for."""
        with suppress(StreamClosed, PeerTimeout):
            while True:
                await self._hand_out(stream, await receive_request(stream, ChunkRequest))

    async def _hand_out(self, stream: Stream, request: ChunkRequest) -> None:
        """Serve one chunk. Whoever asks for many at once and reads none holds but a few."""
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
        trusted = [donor for donor in donors if donor not in self.distrusted] or list(donors)
        size = num_chunks(self._replica.num_parameters)
        indexing = asyncio.create_task(self._fetch_index(state, trusted))
        fetching = _Fetching(state, size, indexing, on_progress)
        draining = [asyncio.create_task(self._drain(donor, fetching)) for donor in trusted]
        try:
            digests = await indexing
            await fetching.until_settled(len(draining))
        finally:
            for task in (indexing, *draining):
                task.cancel()
            await asyncio.gather(indexing, *draining, return_exceptions=True)
        for task in draining:
            if not task.cancelled():
                task.result()  # a bug surfaces
        chunks = fetching.chunks
        if not fetching.plan.is_complete:
            raise ShardUnavailable(
                f"got {len(chunks)} of {size} chunks of the state from {len(trusted)} peers"
            )
        await self._replica.adopt(state, digests, [chunks[i] for i in range(size)])
        log.info("fetched the outer state chunks=%d donors=%d", size, len(trusted))

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
        digests: list[bytes] = []
        try:
            while len(digests) < size:
                page = await call(
                    self._transport,
                    donor,
                    self._index_protocol,
                    IndexRequest(state, len(digests)),
                    IndexPage,
                    timeout_s=CALL_TIMEOUT_S,
                    max_bytes=34 * min(size, INDEX_PAGE) + 1024,
                )
                if not page:
                    break
                digests += page
        except (TransportError, ProtocolViolation) as error:
            log.debug("no state index from peer=%s: %s", short(donor), error)
            return None
        if len(digests) == size and root_of(digests) == state:
            return digests
        log.warning("peer=%s sent an index that is not that of the state", short(donor))
        self.distrusted.add(donor)
        return None

    async def _drain(self, donor: PeerId, fetching: _Fetching) -> None:
        """Fetch chunks from one donor until all are here, from whomever, or it fails."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                stream = await self._transport.open(donor, self._chunk_protocol)
            try:
                await self._ask_and_take(stream, fetching)
            finally:
                await stream.close()
        except DigestMismatch as error:
            log.warning("wrong bytes, donor lost and not asked again: %s", error)
            self.distrusted.add(donor)
        except Refused as error:
            log.debug("donor lost: %s", error)
        except (TransportError, ProtocolViolation) as error:
            log.warning("donor lost: %s", error)
        except TimeoutError:
            log.warning("donor lost: peer=%s sent nothing", short(donor))
        finally:
            fetching.lose(donor)

    async def _ask_and_take(self, stream: Stream, fetching: _Fetching) -> None:
        """Keep asking some chunks ahead, and take them as they come. Raises where one is wrong."""
        donor, plan, now = stream.peer_id, fetching.plan, asyncio.get_running_loop().time
        while not plan.is_complete:
            while (wanted := plan.take(donor, now())) is not None:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await stream.send(msgpack.encode(ChunkRequest(fetching.state, wanted)))
            index = plan.first_asked(donor)
            if index is None:
                await fetching.look_again()
                continue
            async with asyncio.timeout(CALL_TIMEOUT_S):
                frame = await stream.receive(STATE_CHUNK_BYTES + 1024)
            came_at = now()  # the digests may take their time
            chunk = parse_reply(donor, frame, bytes)
            if blake3(chunk).digest() != (await fetching.digests())[index]:
                raise DigestMismatch(donor, f"chunk {index} of the state")
            if plan.arrived(donor, came_at):
                fetching.keep(index, chunk)


class _Fetching:
    """One fetch: the chunks that are here, who is asked for the others, and how it goes on."""

    def __init__(
        self,
        state: bytes,
        size: int,
        indexing: asyncio.Task[list[bytes]],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.state = state
        self.plan = StatePlan(size)
        self.chunks: dict[int, bytes] = {}
        self._indexing = indexing
        self._on_progress = on_progress
        self._num_lost = 0
        self._changed = asyncio.Event()

    async def digests(self) -> list[bytes]:
        """Of all chunks, once they are known. Raises what kept them from being known."""
        return await asyncio.shield(self._indexing)

    def keep(self, index: int, chunk: bytes) -> None:
        """A chunk is here, and checked."""
        self.chunks[index] = chunk
        self._wake()
        if self._on_progress is not None:
            self._on_progress(len(self.chunks), self.plan.num_chunks)

    def lose(self, donor: PeerId) -> None:
        """A donor sends nothing more."""
        self._num_lost += 1
        self.plan.lose(donor)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def look_again(self) -> None:
        """Return when something has happened, or after a while in which nothing has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._changed.wait()

    async def until_settled(self, num_donors: int) -> None:
        """Return when all chunks are here, or no donor is left."""
        while not self.plan.is_complete and self._num_lost < num_donors:
            await self._changed.wait()
