"""Streams between peers: frames over the daemon's binary streams.

A frame is its length (4 bytes, big-endian) and that many bytes. The daemon has proven the other
side's peer id before the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakSet

from zoonet.crypto import PeerId, short
from zoonet.errors import PeerUnreachable, ProtocolViolation, StreamClosed, ZoonetError
from zoonet.net.addresses import PeerAddress
from zoonet.net.control import (
    STREAM_BUFFER_BYTES,
    Control,
    Reader,
    Writer,
    peer_id_of_raw,
    read_message,
)
from zoonet.net.foreign import FOREIGN_TYPES, foreign_errors
from zoonet.net.substrate import p2pd_pb2
from zoonet.transport import MAX_FRAME_BYTES, Buffer, StreamHandler

PROTOCOL_PREFIX: Final = "/zoonet/1/"
LENGTH_BYTES: Final = 4
DIAL_TIMEOUT_S: Final = 20.0
LINGER_S: Final = 30.0  # for what was sent to leave after a close
LAST_LINGER_S: Final = 2.0  # the same, while the host closes
MAX_STREAMS_PER_PEER: Final = 256

# What ends one stream and is no bug of ours.
BREAKING: Final[tuple[type[BaseException], ...]] = (ZoonetError, *FOREIGN_TYPES)

log = logging.getLogger(__name__)


class HostStream:
    """One end of a stream; see `zoonet.transport.Stream`."""

    def __init__(
        self, owner: HostTransport, peer_id: PeerId, reader: Reader, writer: Writer
    ) -> None:
        self._owner = owner
        self._peer_id = peer_id
        self._reader = reader
        self._writer = writer
        self._length: int | None = None  # of a frame whose body is still to be read
        self._is_closed = False
        owner.streams.add(self)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: Buffer) -> None:
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
        if self._is_closed or self._writer.is_closing():
            raise StreamClosed(f"peer={short(self._peer_id)} the stream is closed")
        # The event loop may hold on to the buffer after this returns, so it gets its own.
        payload = frame if isinstance(frame, bytes) else bytes(frame)
        with self._breaking("sending"):
            self._writer.write(len(payload).to_bytes(LENGTH_BYTES, "big"))
            self._writer.write(payload)
            await self._writer.drain()
        self._owner.sent_bytes += len(payload)

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        if self._is_closed:
            raise StreamClosed(f"peer={short(self._peer_id)} the stream is closed")
        with self._breaking("receiving"):
            if self._length is None:
                header = await self._reader.readexactly(LENGTH_BYTES)
                self._length = int.from_bytes(header, "big")
            if self._length > max_bytes:
                raise ProtocolViolation(
                    self._peer_id, f"a frame of {self._length} bytes, at most {max_bytes}"
                )
            frame = await self._reader.readexactly(self._length)
        self._length = None
        self._owner.received_bytes += len(frame)
        return frame

    @contextlib.contextmanager
    def _breaking(self, doing: str) -> Iterator[None]:
        """Translate foreign errors; after any error the stream is of no more use."""
        try:
            with foreign_errors(peer_id=self._peer_id, doing=doing):
                yield
        except ZoonetError:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop the stream and what is under way on it."""
        self._is_closed = True
        self._writer.transport.abort()  # closing would wait for a peer that does not read

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._owner.linger(self._reader, self._writer)


async def _let_leave(reader: Reader, writer: Writer) -> None:
    """Say that nothing more comes, and wait until the daemon has passed everything on.

    Closing at once with unread bytes in the socket would reset it and lose what was sent.
    """
    try:
        async with asyncio.timeout(LINGER_S):
            if writer.can_write_eof():
                writer.write_eof()
            while await reader.read(STREAM_BUFFER_BYTES):
                pass
    except FOREIGN_TYPES as error:
        log.debug("a stream broke while closing: %r", error)
    finally:
        writer.transport.abort()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class HostTransport:
    """The Transport of a host; see `zoonet.transport.Transport`."""

    def __init__(
        self,
        peer_id: PeerId,
        control: Control,
        socket_path: Path,
        addresses_of: Callable[[PeerId], tuple[PeerAddress, ...]],
    ) -> None:
        self._peer_id = peer_id
        self._control = control
        self._socket_path = socket_path
        self._addresses_of = addresses_of
        self._handlers: dict[str, StreamHandler] = {}
        self._registering = asyncio.Lock()  # the daemon hears of one change after the other
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._unnamed: set[Writer] = set()  # brought by the daemon, peer still to be read
        self._is_listening = False
        self.streams: WeakSet[HostStream] = WeakSet()
        self._num_incoming: Counter[PeerId] = Counter()
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept the streams that the daemon brings, while the block runs."""
        with foreign_errors(doing=f"listening on {self._socket_path}"):
            server = await asyncio.start_unix_server(
                self._accept, str(self._socket_path), limit=STREAM_BUFFER_BYTES
            )
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False
            server.close()
            await _cancel(self._tasks)
            for writer in self._unnamed:
                writer.close()
            if self._closing:
                await asyncio.wait(self._closing, timeout=LAST_LINGER_S)
            await _cancel(self._closing)
            for stream in list(self.streams):
                stream.abort()

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        async with self._registering:
            is_new = protocol not in self._handlers
            self._handlers[protocol] = handler
            if is_new:
                await self._control.serve_streams(self._socket_path, PROTOCOL_PREFIX + protocol)

    async def unserve(self, protocol: str) -> None:
        async with self._registering:
            if self._handlers.pop(protocol, None) is not None:
                await self._control.unserve_streams(self._socket_path, PROTOCOL_PREFIX + protocol)

    async def open(self, peer_id: PeerId, protocol: str) -> HostStream:
        if peer_id == self._peer_id:
            raise PeerUnreachable("a peer does not open streams to itself")
        addresses = self._addresses_of(peer_id)
        if addresses:
            await self._control.connect(peer_id, addresses, timeout_s=DIAL_TIMEOUT_S)
        reader, writer = await self._control.open_stream(
            peer_id, PROTOCOL_PREFIX + protocol, timeout_s=DIAL_TIMEOUT_S
        )
        return HostStream(self, peer_id, reader, writer)

    def linger(self, reader: Reader, writer: Writer) -> None:
        """Close a stream's socket once everything has left it."""
        task = asyncio.create_task(_let_leave(reader, writer), name="closing stream")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _accept(self, reader: Reader, writer: Writer) -> None:
        if not self._is_listening:
            writer.close()
            return
        self._unnamed.add(writer)
        task = asyncio.create_task(self._serve(reader, writer), name="stream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        try:
            info = await read_message(reader, p2pd_pb2.StreamInfo(), STREAM_BUFFER_BYTES)
        except BREAKING as error:
            log.debug("the daemon broke off a stream: %r", error)
            writer.close()
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        finally:
            self._unnamed.discard(writer)
        peer_id = peer_id_of_raw(info.peer)
        handler = self._handlers.get(info.proto.removeprefix(PROTOCOL_PREFIX))
        if handler is None or self._num_incoming[peer_id] >= MAX_STREAMS_PER_PEER:
            log.debug("refused a stream peer=%s protocol=%s", short(peer_id), info.proto)
            writer.close()
            return
        self._num_incoming[peer_id] += 1
        try:
            await self._run(handler, HostStream(self, peer_id, reader, writer), info.proto)
        finally:
            self._num_incoming[peer_id] -= 1
            if not self._num_incoming[peer_id]:
                del self._num_incoming[peer_id]

    async def _run(self, handler: StreamHandler, stream: HostStream, protocol: str) -> None:
        try:
            await handler(stream)
        except BREAKING as error:
            log.debug("stream protocol=%s ended: %r", protocol, error)
        except Exception:
            # The boundary between a handler and all others: a bug ends its own stream, loudly.
            log.exception("handler of protocol=%s failed", protocol)
        finally:
            await stream.close()
