"""Blocks between peers: serving one's own, fetching others' from several holders at once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from msgspec import Struct, msgpack

from zoonet.blocks.cid import check, codec_of, is_cid
from zoonet.blocks.manifest import MAX_FILE_BYTES, Manifest, manifest_of, nodes_below
from zoonet.blocks.plan import FetchPlan
from zoonet.blocks.store import MAX_BLOCK_BYTES, Blocks, call_store
from zoonet.blocks.unixfs import MAX_NODE_BYTES
from zoonet.crypto import PeerId, short
from zoonet.errors import (
    DigestMismatch,
    PeerTimeout,
    ProtocolViolation,
    ShardUnavailable,
    StorageError,
    StreamClosed,
    TransportError,
)
from zoonet.transport import (
    Refused,
    Stream,
    Transport,
    receive_request,
    send_refusal,
    send_reply,
)
from zoonet.transport.calls import parse_reply

PROTOCOL: Final = "blocks/1"
_REPLY_OVERHEAD_BYTES: Final = 512  # status, msgpack header, or the text of a refusal
LANES: Final = 2  # streams to each holder: one block travels while the next is asked for
MAX_STREAMS: Final = 64  # served at once, in all and by one peer
MAX_STREAMS_PER_PEER: Final = 8
STALL_TIMEOUT_S: Final = 60.0  # for one block from one holder

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


class Want(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for one block. The answer is its bytes or a refusal; then the next may be asked."""

    cid: str


class BlockExchange:
    """One peer's side of the exchange.

    A holder that sent wrong bytes is never asked again while this object lives.
    """

    def __init__(
        self, transport: Transport, store: Blocks, *, stall_timeout_s: float = STALL_TIMEOUT_S
    ) -> None:
        self.store = store
        self.distrusted: set[PeerId] = set()
        self._transport = transport
        self._stall_timeout_s = stall_timeout_s
        self._streams: Counter[PeerId] = Counter()

    async def serve(self) -> None:
        """Answer peers that ask for blocks, from now on."""
        await self._transport.serve(PROTOCOL, self._serve_stream)

    async def _serve_stream(self, stream: Stream) -> None:
        asker = stream.peer_id
        if self._streams.total() >= MAX_STREAMS or self._streams[asker] >= MAX_STREAMS_PER_PEER:
            log.debug("busy, closed a blocks stream peer=%s", short(asker))
            return
        self._streams[asker] += 1
        try:
            while True:
                await self._answer(stream, await receive_request(stream, Want))
        except (StreamClosed, PeerTimeout):
            log.debug("blocks stream ended peer=%s", short(asker))
        finally:
            self._streams -= Counter({asker: 1})

    async def _answer(self, stream: Stream, want: Want) -> None:
        if not is_cid(want.cid):
            raise ProtocolViolation(stream.peer_id, "asked for something that is no block")
        try:
            block = await call_store(self.store, self.store.get, want.cid)
        except (ShardUnavailable, StorageError, DigestMismatch) as error:
            await send_refusal(stream, str(error))
            return
        await send_reply(stream, block)

    @asynccontextmanager
    async def open(self, holder: PeerId) -> AsyncIterator[Stream]:
        """A stream to a holder, for `ask`."""
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                stream = await self._transport.open(holder, PROTOCOL)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(holder)} opened no stream") from error
        try:
            yield stream
        finally:
            await stream.close()

    async def ask(self, stream: Stream, cid: str, max_bytes: int) -> bytes:
        """Return one block from a holder, checked against its name.

        Raises Refused, DigestMismatch, ProtocolViolation or TransportError.
        """
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await stream.send(msgpack.encode(Want(cid=cid)))
                frame = await stream.receive(max_bytes + _REPLY_OVERHEAD_BYTES)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(stream.peer_id)} sent no block") from error
        block = parse_reply(stream.peer_id, frame, bytes)
        check(cid, block, peer=stream.peer_id)
        return block

    async def fetch(
        self, cid: str, holders: Iterable[PeerId], *, max_bytes: int = MAX_BLOCK_BYTES
    ) -> bytes:
        """Return a block: from the own store, else from the holders, and keep it.

        Raises ShardUnavailable where no holder has it, ProtocolViolation where it is larger than
        `max_bytes`, StorageError. Safe to cancel.
        """
        if not is_cid(cid):
            raise ProtocolViolation("", f"{cid[:80]!r} is not the name of a block")
        await self._fetch_missing((cid,), holders, max_bytes, lambda _: None)
        try:
            block = await call_store(self.store, self.store.get, cid)
        except DigestMismatch:  # the local copy was damaged and is gone now
            await self._fetch_missing((cid,), holders, max_bytes, lambda _: None)
            block = await call_store(self.store, self.store.get, cid)
        if len(block) > max_bytes:
            raise ProtocolViolation("", f"block {cid} has {len(block)} bytes, at most {max_bytes}")
        return block

    async def fetch_file(
        self,
        root_cid: str,
        holders: Sequence[PeerId],
        *,
        on_progress: OnProgress | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        owner: str = "",
    ) -> Manifest:
        """Bring a file's blocks into the store; those already there are not asked for again.

        `on_progress(done_bytes, total_bytes)` is called after each block of a file of several. The
        blocks are pinned for `owner`; without one, only until the call returns. Raises
        ShardUnavailable, StorageError, or ProtocolViolation for a file that is laid out otherwise
        or has more than `max_bytes`. Safe to cancel: blocks that arrived stay.
        """
        keeper = owner or f"fetch/{root_cid}"
        self.store.pin(keeper, (root_cid,))
        try:
            manifest = await self._fetch_tree(root_cid, holders, keeper, max_bytes)
            sizes: Counter[str] = Counter()
            for index, cid in enumerate(manifest.cids):
                sizes[cid] += manifest.size_of(index)
            done_bytes = sum(size for cid, size in sizes.items() if self.store.has(cid))

            def arrived(cid: str) -> None:
                nonlocal done_bytes
                done_bytes += sizes[cid]
                if on_progress is not None:
                    on_progress(done_bytes, manifest.size)

            await self._fetch_missing(sizes, holders, manifest.block_bytes, arrived)
        finally:
            if not owner:
                self.store.unpin(keeper)
        return manifest

    async def _fetch_tree(
        self, root_cid: str, holders: Sequence[PeerId], keeper: str, max_bytes: int
    ) -> Manifest:
        """Bring a file's nodes into the store, and pin all that they name."""
        nodes = nodes_below(root_cid, await self.fetch(root_cid, holders))
        self.store.pin(keeper, nodes)
        await self._fetch_missing(nodes, holders, MAX_NODE_BYTES, lambda _: None)
        manifest = await call_store(self.store, manifest_of, self.store, root_cid)
        if manifest.size > max_bytes:
            raise ProtocolViolation("", f"a file of {manifest.size} bytes, at most {max_bytes}")
        self.store.pin(keeper, manifest.cids)
        return manifest

    async def _fetch_missing(
        self,
        cids: Iterable[str],
        holders: Iterable[PeerId],
        max_bytes: int,
        on_block: Callable[[str], None],
    ) -> None:
        missing = [cid for cid in cids if not self.store.has(cid)]
        if not missing:
            return
        trusted = [
            holder
            for holder in dict.fromkeys(holders)
            if holder not in self.distrusted and holder != self._transport.peer_id
        ]
        fetch = _Fetch(self, missing, trusted, max_bytes, on_block)
        await fetch.run(min(LANES, len(missing)))


class _Fetch:
    """One fetch of many blocks: lanes to the holders, driven by a FetchPlan."""

    def __init__(
        self,
        exchange: BlockExchange,
        cids: Sequence[str],
        holders: Sequence[PeerId],
        max_bytes: int,
        on_block: Callable[[str], None],
    ) -> None:
        self._exchange = exchange
        self._holders = holders
        self._max_bytes = max_bytes
        self._on_block = on_block
        self._plan = FetchPlan(cids, holders)
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._lanes: Counter[PeerId] = Counter()
        self._failure: StorageError | None = None

    async def run(self, num_lanes: int) -> None:
        """Return when every block is in the store. Raises ShardUnavailable or StorageError."""
        self._notify()
        async with asyncio.TaskGroup() as tasks:
            lanes = [
                tasks.create_task(self._lane(holder))
                for _ in range(num_lanes)
                for holder in self._holders
            ]
            await self._settled.wait()
            for lane in lanes:
                lane.cancel()
        if self._failure is not None:
            raise self._failure
        if lost := self._plan.unavailable():
            asked = ", ".join(short(holder) for holder in self._holders) or "nobody"
            raise ShardUnavailable(
                f"no peer has block {lost} (asked: {asked}); "
                "it can be fetched once a peer that holds it is back"
            )

    def _notify(self) -> None:
        if self._plan.is_done or self._plan.unavailable() or self._failure is not None:
            self._settled.set()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _lane(self, holder: PeerId) -> None:
        self._lanes[holder] += 1
        try:
            async with self._exchange.open(holder) as stream:
                while True:
                    await self._next_block(holder, stream)
        except DigestMismatch as error:
            log.warning("wrong bytes, not asked again peer=%s: %s", short(holder), error)
            self._exchange.distrusted.add(holder)
            self._plan.drop(holder)
        except (TransportError, ProtocolViolation) as error:
            log.info("holder lost peer=%s: %s", short(holder), error)
        except StorageError as error:
            self._failure = error
        self._lanes[holder] -= 1
        if not self._lanes[holder]:
            self._plan.drop(holder)
        self._notify()

    async def _next_block(self, holder: PeerId, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        cid = self._plan.take(holder, loop.time())
        if not cid:
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(self._plan.wait_s(holder, loop.time())):
                    await changed.wait()
            return
        try:
            block = await self._exchange.ask(stream, cid, self._max_bytes)
        except Refused as error:
            log.debug("refused: %s", error)
            self._plan.lacks(cid, holder)
            self._notify()
            return
        except (TransportError, ProtocolViolation):
            self._plan.release(cid, holder)
            raise
        store = self._exchange.store
        is_new = not store.has(cid)
        await call_store(store, store.put, block, codec_of(cid))
        self._plan.arrived(cid, holder, loop.time())
        if is_new:
            self._on_block(cid)
        self._notify()
