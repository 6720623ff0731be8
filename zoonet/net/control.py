"""The daemon's control socket: one request, one response, in length-prefixed protobuf."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import base58

from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.net.addresses import PeerAddress, text_of
from zoonet.net.foreign import foreign_errors
from zoonet.net.substrate import ControlFailure, p2pd_pb2, socket_address

MAX_CONTROL_BYTES: Final = 8 * 1024 * 1024
STREAM_BUFFER_BYTES: Final = 512 * 1024  # read ahead of a slow reader, per stream
LOCAL_TIMEOUT_S: Final = 30.0  # for what the daemon answers by itself
GRACE_S: Final = 5.0  # beyond a timeout that the daemon was told, so that its own words arrive

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def read_message(reader: Reader, message: Any, max_bytes: int = MAX_CONTROL_BYTES) -> Any:
    """Read one varint-prefixed protobuf into `message` and return it."""
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 35:
            raise ProtocolViolation("", "an endless length from the daemon")
    if size > max_bytes:
        raise ProtocolViolation("", f"a message of {size} bytes from the daemon")
    message.ParseFromString(await reader.readexactly(size))
    return message


async def write_message(writer: Writer, message: Any) -> None:
    """Write one varint-prefixed protobuf."""
    payload = message.SerializeToString()
    size, prefix = len(payload), bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    writer.write(bytes(prefix) + payload)
    await writer.drain()


def raw_peer_id(peer_id: str) -> bytes:
    """A peer id as the daemon takes it."""
    raw: bytes = base58.b58decode(peer_id)
    return raw


def peer_id_of_raw(raw: bytes) -> PeerId:
    """A peer id as everyone else writes it. Ids of other kinds of keys pass through here too."""
    return PeerId(base58.b58encode(raw[:64]).decode())


class Control:
    """Asks the daemon for things. Errors are ours; every method may be cancelled."""

    def __init__(self, socket_path: Path) -> None:
        self._path = str(socket_path)

    async def _start(self, request: Any) -> tuple[Any, Reader, Writer]:
        reader, writer = await self._open()
        try:
            await write_message(writer, request)
            response = await read_message(reader, p2pd_pb2.Response())
            if response.type == p2pd_pb2.Response.ERROR:
                raise ControlFailure(response.error.msg)
        except BaseException:
            writer.close()
            raise
        return response, reader, writer

    async def _open(self) -> tuple[Reader, Writer]:
        """Connect to the daemon. A caller that goes away meanwhile leaves no open socket behind."""
        opening = asyncio.ensure_future(
            asyncio.open_unix_connection(self._path, limit=STREAM_BUFFER_BYTES)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})  # a local socket: at once, or refused
            if not opening.exception():
                opening.result()[1].close()
            raise

    async def _ask(
        self, request: Any, *, doing: str, peer_id: str = "", timeout_s: float = LOCAL_TIMEOUT_S
    ) -> Any:
        with foreign_errors(peer_id=peer_id, doing=doing):
            async with asyncio.timeout(timeout_s + GRACE_S):
                response, _, writer = await self._start(request)
            writer.close()
            return response

    async def identify(self) -> tuple[PeerId, tuple[str, ...]]:
        """Return the daemon's peer id and its addresses, without /p2p/<id>."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        response = await self._ask(request, doing="asking the daemon who it is")
        texts = (text_of(raw) for raw in response.identify.addrs)
        return peer_id_of_raw(response.identify.id), tuple(text for text in texts if text)

    async def connect(
        self, peer_id: PeerId, addresses: Iterable[PeerAddress], *, timeout_s: float
    ) -> None:
        """Connect to a peer, at these addresses or wherever it was known before.

        Raises PeerUnreachable or PeerTimeout.
        """
        connect = p2pd_pb2.ConnectRequest(
            peer=raw_peer_id(peer_id),
            addrs=[address.route for address in addresses],
            timeout=max(1, round(timeout_s)),
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect)
        await self._ask(request, doing="connecting", peer_id=peer_id, timeout_s=timeout_s)

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to a peer."""
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.DISCONNECT,
            disconnect=p2pd_pb2.DisconnectRequest(peer=raw_peer_id(peer_id)),
        )
        await self._ask(request, doing="disconnecting", peer_id=peer_id)

    async def connections(self) -> list[tuple[PeerId, str]]:
        """Every open connection: the other peer, and the address it runs over."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response = await self._ask(request, doing="listing connections")
        return [
            (peer_id_of_raw(peer.id), text_of(peer.addrs[0]) if peer.addrs else "")
            for peer in response.peers
        ]

    async def open_stream(
        self, peer_id: PeerId, protocol: str, *, timeout_s: float
    ) -> tuple[Reader, Writer]:
        """Open a stream to a peer's handler of the protocol. Raises PeerUnreachable."""
        stream = p2pd_pb2.StreamOpenRequest(
            peer=raw_peer_id(peer_id), proto=[protocol], timeout=max(1, round(timeout_s))
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=stream)
        with foreign_errors(peer_id=peer_id, doing=f"opening {protocol}"):
            async with asyncio.timeout(timeout_s + GRACE_S):
                _, reader, writer = await self._start(request)
        return reader, writer

    async def serve_streams(self, socket_path: Path, protocol: str) -> None:
        """Have the daemon bring streams of the protocol to a socket of ours."""
        handler = p2pd_pb2.StreamHandlerRequest(
            addr=socket_address(socket_path).to_bytes(), proto=[protocol], balanced=False
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
        await self._ask(request, doing=f"serving {protocol}")

    async def unserve_streams(self, socket_path: Path, protocol: str) -> None:
        """Have the daemon refuse streams of the protocol again."""
        removed = p2pd_pb2.RemoveStreamHandlerRequest(
            addr=socket_address(socket_path).to_bytes(), proto=[protocol]
        )
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.REMOVE_STREAM_HANDLER, removeStreamHandler=removed
        )
        await self._ask(request, doing=f"no longer serving {protocol}")

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send a message to everyone who subscribes to the topic."""
        message = p2pd_pb2.PSRequest(type=p2pd_pb2.PSRequest.PUBLISH, topic=topic, data=payload)
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.PUBSUB, pubsub=message)
        await self._ask(request, doing=f"publishing on {topic}")

    async def subscribe(self, topic: str) -> tuple[Reader, Writer]:
        """Open a connection on which the topic's messages arrive as `PSMessage`."""
        message = p2pd_pb2.PSRequest(type=p2pd_pb2.PSRequest.SUBSCRIBE, topic=topic)
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.PUBSUB, pubsub=message)
        with foreign_errors(doing=f"subscribing to {topic}"):
            async with asyncio.timeout(LOCAL_TIMEOUT_S):
                _, reader, writer = await self._start(request)
        return reader, writer

    async def subscribers(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers that subscribe to the topic."""
        message = p2pd_pb2.PSRequest(type=p2pd_pb2.PSRequest.LIST_PEERS, topic=topic)
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.PUBSUB, pubsub=message)
        response = await self._ask(request, doing=f"listing subscribers of {topic}")
        return tuple(peer_id_of_raw(raw) for raw in response.pubsub.peerIDs)
