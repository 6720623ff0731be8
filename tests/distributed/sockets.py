"""A Transport between processes of one test, over sockets in a folder: quick to start, no keys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from zoonet.crypto import Identity, PeerId
from zoonet.errors import PeerUnreachable, ProtocolViolation, StreamClosed
from zoonet.transport import MAX_FRAME_BYTES, Buffer, Lanes, StreamHandler, StreamLanes

LENGTH_BYTES = 4


def peer_of(rank: int) -> PeerId:
    return Identity(hashlib.sha256(f"rank {rank}".encode()).digest()).peer_id


class SocketStream:
    """A Stream over a local socket."""

    def __init__(
        self, peer_id: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.peer_id = peer_id
        self._reader = reader
        self._writer = writer

    async def send(self, frame: Buffer) -> None:
        try:
            self._writer.write(len(frame).to_bytes(LENGTH_BYTES, "big"))
            self._writer.write(frame)
            await self._writer.drain()
        except OSError as error:
            raise StreamClosed(f"the stream broke: {error}") from error

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            if length > max_bytes:
                raise ProtocolViolation(self.peer_id, f"a frame of {length} bytes")
            return await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise StreamClosed("the stream ended") from error

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class SocketTransport:
    """The Transport of one rank; the others are found by the names of their sockets."""

    def __init__(self, folder: Path, rank: int, num_peers: int) -> None:
        self.peer_id = peer_of(rank)
        self.sent_bytes = self.received_bytes = 0
        self._folder = folder
        self._paths = {peer_of(other): self._path(other) for other in range(num_peers)}
        self._rank = rank
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _path(self, rank: int) -> str:
        return str(self._folder / f"{rank}.sock")

    @asynccontextmanager
    async def lanes(self) -> AsyncIterator[Lanes]:
        """Lanes over its streams, while the block runs."""
        server = await asyncio.start_unix_server(self._accept, self._path(self._rank))
        try:
            yield StreamLanes(self)
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = SocketStream(PeerId(""), reader, writer)
        with contextlib.suppress(StreamClosed, ProtocolViolation):
            hello = json.loads(await stream.receive())
            stream.peer_id = PeerId(hello["peer"])
            handler = self._handlers.get(hello["protocol"])
            if handler is not None:
                await stream.send(b"welcome")
                await handler(stream)
        await stream.close()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def unserve(self, protocol: str) -> None:
        self._handlers.pop(protocol, None)

    async def open(self, peer_id: PeerId, protocol: str) -> SocketStream:
        try:
            reader, writer = await asyncio.open_unix_connection(self._paths[peer_id])
            stream = SocketStream(peer_id, reader, writer)
            await stream.send(json.dumps({"peer": self.peer_id, "protocol": protocol}).encode())
            await stream.receive()
            return stream
        except (OSError, StreamClosed) as error:
            raise PeerUnreachable(f"no stream: {error}") from error
