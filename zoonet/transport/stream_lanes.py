"""Lanes over ordinary streams: through relays where need be, and in tests in virtual time.

Each message is one frame: the header's length (2 bytes, big-endian), the header, the payload. All
of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.errors import (
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    TransportError,
    ZoonetError,
)
from zoonet.transport.lanes import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Lane,
    LaneEnded,
    LineStats,
    LinkStats,
    Path,
    Sink,
)
from zoonet.transport.streams import Buffer, Stream, Transport

LENGTH_BYTES: Final = 2
PATIENCE_S: Final = 8.0  # for a sink to say where a payload goes
ASK_AGAIN_S: Final = 0.02
OPEN_S: Final = 15.0
FIRST_S: Final = 30.0  # for the first message after a lane was opened
STALL_S: Final = 15.0  # for the other side to take a message
CLOSE_S: Final = 2.0


class StreamLane:
    """A `Lane` over one stream."""

    def __init__(self, stream: Stream, on_end: LaneEnded) -> None:
        self.path: Path = "stream"  # or "relayed", by whoever knows
        self._stream = stream
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, Buffer]] = deque()
        self._unsent_bytes = 0
        self._is_ended = False
        self._posted = asyncio.Event()
        self._task = asyncio.create_task(self._send_all(), name="lane")

    @property
    def peer_id(self) -> PeerId:
        return self._stream.peer_id

    @property
    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def post(self, header: bytes, payload: Buffer) -> None:
        if self._is_ended:
            return
        self._queue.append((header, payload))
        self._unsent_bytes += len(header) + len(payload)
        self._loop.call_soon_threadsafe(self._posted.set)

    def drop(self) -> None:
        while self._queue:
            self._unsent_bytes -= sum(map(len, self._queue.popleft()))

    async def close(self) -> None:
        if not self._is_ended and self._queue:
            await asyncio.wait({self._task}, timeout=CLOSE_S)
        self._is_ended = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stream.close()

    async def _send_all(self) -> None:
        try:
            while True:
                await self._posted.wait()
                self._posted.clear()
                while self._queue:
                    header, payload = self._queue.popleft()
                    await self._send(header, payload)
                    self._unsent_bytes -= len(header) + len(payload)
        except (TransportError, ProtocolViolation) as error:
            self._end(error)
        finally:
            await self._stream.close()

    async def _send(self, header: bytes, payload: Buffer) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                length = len(header).to_bytes(LENGTH_BYTES, "big")
                await self._stream.send(b"".join((length, header, payload)))
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(self.peer_id)} takes no bytes") from error

    def _end(self, error: ZoonetError) -> None:
        if not self._is_ended:
            self._is_ended = True
            self.drop()
            self._on_end(self, error)


class StreamLanes:
    """`Lanes` over a `Transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sinks: dict[str, Sink] = {}
        self._heard: dict[PeerId, float] = {}  # loop time of the last frame of each peer

    @property
    def peer_id(self) -> PeerId:
        return self._transport.peer_id

    async def serve(self, channel: str, sink: Sink) -> None:
        self._sinks[channel] = sink

        async def take(stream: Stream) -> None:
            await self._receive_all(stream, channel)

        await self._transport.serve(protocol_of(channel), take)

    async def unserve(self, channel: str) -> None:
        self._sinks.pop(channel, None)

    async def open(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> StreamLane:
        try:
            async with asyncio.timeout(OPEN_S):
                stream = await self._transport.open(peer_id, protocol_of(channel))
        except TimeoutError as error:
            raise PeerUnreachable(f"peer={short(peer_id)} no stream in {OPEN_S:.0f} s") from error
        return StreamLane(stream, on_end)

    async def open_ahead(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane | None:
        return None  # who is opened a stream takes it that something comes soon

    def ask_again(self) -> None:
        """Nothing to do: they ask every few milliseconds."""

    def silent_s(self, peer_id: PeerId) -> float:
        heard = self._heard.get(peer_id)
        return math.inf if heard is None else asyncio.get_running_loop().time() - heard

    def arriving(self, peer_id: PeerId) -> Mapping[bytes, int] | None:
        return None

    def allocate(self, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    def links(self) -> Mapping[PeerId, LinkStats]:
        return {}

    def line(self) -> LineStats:
        return LineStats(0.0, 0.0)

    async def _receive_all(self, stream: Stream, channel: str) -> None:
        sink = self._sinks.get(channel)
        try:
            is_first = True  # nobody opens a lane to send nothing
            while sink is not None and self._sinks.get(channel) is sink:
                async with asyncio.timeout(FIRST_S if is_first else None):
                    await receive_message(stream, sink)
                is_first = False
                self._heard[stream.peer_id] = asyncio.get_running_loop().time()
        except (TransportError, ProtocolViolation, TimeoutError) as caught:
            silent = PeerTimeout(f"peer={short(stream.peer_id)} opened a lane and sends nothing")
            error = silent if isinstance(caught, TimeoutError) else caught
            if sink is not None:
                sink.ended(stream.peer_id, error)
            if isinstance(error, StreamClosed):
                return  # an ordinary end
            raise


def protocol_of(channel: str) -> str:
    """The stream protocol of a channel."""
    return f"/lane/{channel}"


async def receive_message(stream: Stream, sink: Sink) -> None:
    """Receive one message into the sink. Raises TransportError or ProtocolViolation."""
    peer = stream.peer_id
    frame = memoryview(await stream.receive(LENGTH_BYTES + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES))
    start = LENGTH_BYTES + int.from_bytes(frame[:LENGTH_BYTES], "big")
    header, payload = bytes(frame[LENGTH_BYTES:start]), frame[start:]
    if start > min(len(frame), LENGTH_BYTES + MAX_HEADER_BYTES) or len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolViolation(peer, f"a message of {len(frame)} bytes that is none")
    target = await _admitted(peer, sink, header, len(payload))
    target[:] = payload
    sink.arrived(peer, header)


async def _admitted(peer: PeerId, sink: Sink, header: bytes, num_bytes: int) -> memoryview:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (target := sink.admit(peer, header, num_bytes)) is None:
        if asyncio.get_running_loop().time() >= deadline:
            raise ProtocolViolation(peer, "a message that nobody here waits for")
        await asyncio.sleep(ASK_AGAIN_S)
    return target
