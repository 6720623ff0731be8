"""A swarm in memory: the two Protocols of the network, with faults where a test plans them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from zoonet.clock import Clock, LoopClock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import (
    InvalidRecord,
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    ZoonetError,
)
from zoonet.records import ReplayGuard, Signed, verify
from zoonet.records.envelope import B
from zoonet.testing.faults import FaultPlan
from zoonet.transport import MAX_FRAME_BYTES, Buffer, StreamHandler

_CLOSED = None


class MemorySwarm:
    """All peers of a test. `peer(identity)` gives the Transport and RecordStore of one."""

    def __init__(self, *, clock: Clock | None = None, faults: FaultPlan | None = None) -> None:
        self.clock = clock or LoopClock()
        self.faults = faults or FaultPlan()
        self.transports: dict[PeerId, MemoryTransport] = {}
        self.records: dict[str, dict[PeerId, bytes]] = defaultdict(dict)
        self.listeners: dict[str, list[tuple[PeerId, asyncio.Queue[bytes]]]] = defaultdict(list)

    def peer(self, identity: Identity) -> tuple[MemoryTransport, MemoryRecordStore]:
        """Let a peer into the swarm."""
        transport = MemoryTransport(self, identity.peer_id)
        self.transports[identity.peer_id] = transport
        return transport, MemoryRecordStore(self, identity.peer_id)

    async def kill(self, peer_id: PeerId) -> None:
        """End a peer as SIGKILL would: its streams break, it answers nobody."""
        transport = self.transports.pop(peer_id)
        transport.is_dead = True
        for stream in list(transport.streams):
            stream.break_both()


class MemoryStream:
    """One end of a stream between two peers of the same process."""

    def __init__(self, owner: MemoryTransport, peer_id: PeerId) -> None:
        self._owner = owner
        self._peer_id = peer_id
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        self._is_closed = False
        self.other: MemoryStream | None = None
        owner.streams.add(self)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: Buffer) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
        await self._owner.swarm.faults.delay(self._owner.peer_id, self._peer_id, len(frame))
        other = self.other
        if self._is_closed or other is None or other._is_closed:
            raise StreamClosed(f"peer={short(self._peer_id)} has closed the stream")
        self._owner.sent_bytes += len(frame)
        await other._inbox.put(bytes(frame))

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        if self._is_closed:
            raise StreamClosed(f"peer={short(self._peer_id)} the stream is closed")
        frame = await self._inbox.get()
        if frame is _CLOSED:
            self._inbox.put_nowait(_CLOSED)
            raise StreamClosed(f"peer={short(self._peer_id)} ended the stream")
        if len(frame) > max_bytes:
            raise ProtocolViolation(self._peer_id, f"a frame of {len(frame)} bytes")
        self._owner.received_bytes += len(frame)
        return frame

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._owner.streams.discard(self)
        if self.other is not None and not self.other._is_closed:
            self.other._hang_up()

    def break_both(self) -> None:
        """Drop what is under way, as when a process dies."""
        for end in (self, self.other):
            if end is not None and not end._is_closed:
                end._hang_up()
                end._is_closed = end is self
        self._owner.streams.discard(self)

    def _hang_up(self) -> None:
        if self._inbox.full():
            self._inbox.get_nowait()
        self._inbox.put_nowait(_CLOSED)


class MemoryTransport:
    """The Transport of one peer of a MemorySwarm."""

    def __init__(self, swarm: MemorySwarm, peer_id: PeerId) -> None:
        self.swarm = swarm
        self.peer_id = peer_id
        self.sent_bytes = 0
        self.received_bytes = 0
        self.is_dead = False
        self.streams: set[MemoryStream] = set()
        self.failures: list[BaseException] = []
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def unserve(self, protocol: str) -> None:
        self._handlers.pop(protocol, None)

    async def open(self, peer_id: PeerId, protocol: str) -> MemoryStream:
        await self.swarm.faults.delay(self.peer_id, peer_id, 0)
        other = self.swarm.transports.get(peer_id)
        if other is None or self.is_dead or self.swarm.faults.is_cut(self.peer_id, peer_id):
            raise PeerUnreachable(f"peer={short(peer_id)} is not in the swarm")
        if protocol not in other._handlers:
            raise PeerUnreachable(f"peer={short(peer_id)} does not serve {protocol}")
        near, far = MemoryStream(self, peer_id), MemoryStream(other, self.peer_id)
        near.other, far.other = far, near
        task = asyncio.create_task(other._handle(far, other._handlers[protocol]))
        other._tasks.add(task)
        task.add_done_callback(other._tasks.discard)
        return near

    async def _handle(self, stream: MemoryStream, handler: StreamHandler) -> None:
        try:
            await handler(stream)
        except (ZoonetError, TimeoutError) as error:
            self.failures.append(error)
        finally:
            await stream.close()

    async def close(self) -> None:
        """Stop serving and end the handlers that still run."""
        self._handlers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class MemoryRecordStore:
    """The RecordStore of one peer of a MemorySwarm."""

    def __init__(self, swarm: MemorySwarm, peer_id: PeerId) -> None:
        self._swarm = swarm
        self._peer_id = peer_id
        self._guard = ReplayGuard(swarm.clock.now)
        self._counts: Counter[str] = Counter()

    @property
    def refusals(self) -> dict[str, int]:
        return dict(self._counts)

    async def publish(self, record: Signed[Any]) -> None:
        await self._swarm.faults.delay(self._peer_id, self._peer_id, len(record.raw))
        shelf = self._swarm.records[record.key]
        known = shelf.get(record.author)
        if known is None or self._sequence(known) < record.sequence:
            shelf[record.author] = record.raw

    def _sequence(self, raw: bytes) -> int:
        try:
            return verify(raw, now=self._swarm.clock.now()).sequence
        except InvalidRecord:
            return -1

    async def fetch(self, key: str, body_type: type[B]) -> list[Signed[B]]:
        await self._swarm.faults.delay(self._peer_id, self._peer_id, 0)
        found = []
        for author, raw in sorted(self._swarm.records[key].items()):
            record = self._check(raw, author)
            if record is not None and record.key == key and isinstance(record.body, body_type):
                found.append(record)
        return found

    def _check(self, raw: bytes, author: PeerId) -> Signed[Any] | None:
        try:
            record = verify(raw, now=self._swarm.clock.now())
            if record.author != author:
                raise InvalidRecord(record.author, "misplaced", "stored by another peer")
            self._guard.admit(record)
        except InvalidRecord as error:
            self._counts[error.reason] += 1
            return None
        return record

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        if record.author != self._peer_id:
            raise ValueError("only its author may announce a record")
        await self._swarm.faults.delay(self._peer_id, self._peer_id, len(record.raw))
        for peer_id, queue in self._swarm.listeners[topic]:
            if self._swarm.faults.is_cut(self._peer_id, peer_id):
                continue
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(record.raw)

    def listen(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Signed[Any]]]:
        return self._listen(topic)

    @asynccontextmanager
    async def _listen(self, topic: str) -> AsyncIterator[AsyncIterator[Signed[Any]]]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(256)
        entry = (self._peer_id, queue)
        self._swarm.listeners[topic].append(entry)
        try:
            yield self._verified(queue)
        finally:
            self._swarm.listeners[topic].remove(entry)

    async def _verified(self, queue: asyncio.Queue[bytes]) -> AsyncIterator[Signed[Any]]:
        while True:
            raw = await queue.get()
            try:
                record = verify(raw, now=self._swarm.clock.now())
                self._guard.admit(record)
            except InvalidRecord as error:
                self._counts[error.reason] += 1
                continue
            yield record
