"""A `Transport` over plain TCP, for benchmarks: control messages without a libp2p daemon.

Who dials says who it is and is believed: everyone here is ours. What is measured does not go over
these streams. A frame is its length (4 bytes, big-endian) and that many bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from zoonet.crypto import PeerId, short
from zoonet.errors import (
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    TransportError,
    ZoonetError,
)
from zoonet.transport import MAX_FRAME_BYTES, Buffer, StreamHandler

_LENGTH_BYTES = 4
_BREAKING = (OSError, EOFError)  # what a connection that breaks raises

log = logging.getLogger(__name__)


class BareStream:
    """See `zoonet.transport.Stream`."""

    def __init__(
        self,
        owner: BareTransport,
        peer_id: PeerId,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._owner = owner
        self._peer_id = peer_id
        self._reader = reader
        self._writer = writer

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: Buffer) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
        if self._writer.is_closing():
            raise StreamClosed(f"peer={short(self._peer_id)} the stream is closed")
        with self._breaking():
            self._writer.write(len(frame).to_bytes(_LENGTH_BYTES, "big"))
            self._writer.write(bytes(frame))
            await self._writer.drain()
        self._owner.sent_bytes += len(frame)

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        with self._breaking():
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > max_bytes:
                self._writer.close()
                raise ProtocolViolation(self._peer_id, f"a frame of {length} bytes")
            frame = await self._reader.readexactly(length)
        self._owner.received_bytes += length
        return frame

    async def close(self) -> None:
        self._writer.close()

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except _BREAKING as error:
            self._writer.close()
            raise StreamClosed(f"peer={short(self._peer_id)} {error!r}") from error


class BareTransport:
    """See `zoonet.transport.Transport`. Peers are found where `learn` was told that they are."""

    def __init__(self, peer_id: PeerId, host: str) -> None:
        self._peer_id = peer_id
        self._host = host
        self._places: dict[PeerId, tuple[str, int]] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept streams while the block runs."""
        server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def learn(self, peer_id: PeerId, host: str, port: int) -> None:
        """Remember where a peer is."""
        self._places[peer_id] = (host, port)

    async def routes_of(self, peer_id: PeerId) -> tuple[str, ...]:
        """The address of a peer, as a host would tell it."""
        if peer_id not in self._places:
            return ()
        host, port = self._places[peer_id]
        return (f"/ip4/{host}/tcp/{port}",)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def unserve(self, protocol: str) -> None:
        self._handlers.pop(protocol, None)

    async def open(self, peer_id: PeerId, protocol: str) -> BareStream:
        try:
            reader, writer = await asyncio.open_connection(*self._places[peer_id])
        except (KeyError, OSError) as error:
            raise PeerUnreachable(f"peer={short(peer_id)} {error!r}") from error
        stream = BareStream(self, peer_id, reader, writer)
        await stream.send(json.dumps([self._peer_id, protocol]).encode())
        return stream

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="stream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            stream = BareStream(self, PeerId("a stranger"), reader, writer)
            peer_id, protocol = json.loads(await stream.receive(1024))
            handler = self._handlers.get(protocol)
            if handler is None:
                raise TransportError(f"nobody serves {protocol}")
            await handler(BareStream(self, PeerId(peer_id), reader, writer))
        except ZoonetError as error:
            log.debug("a stream ended: %s", error)
        finally:
            writer.close()
