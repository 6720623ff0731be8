"""One question, one answer, over a stream: typed, bounded, and timed by the caller.

A request is one frame, the MessagePack of a `msgspec.Struct`. The reply is one frame: a byte 0
and the MessagePack of the reply's type, or a byte 1 and an error message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout, ProtocolViolation, TransportError, ZoonetError
from zoonet.transport.streams import Stream, Transport

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A")

MAX_CALL_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0  # for the request's own frame to arrive after the stream opened
REPLY_TIMEOUT_S: Final = 60.0  # for the asker to take the answer
_OK, _ERROR = b"\x00", b"\x01"

log = logging.getLogger(__name__)


class Refused(TransportError):
    """The other peer answered that it will not or cannot do what was asked."""


async def call(
    transport: Transport,
    peer_id: PeerId,
    protocol: str,
    request: msgspec.Struct,
    reply_type: type[A],
    *,
    timeout_s: float,
    max_bytes: int = MAX_CALL_BYTES,
) -> A:
    """Ask a peer and return its answer.

    Raises PeerUnreachable, PeerTimeout, StreamClosed, Refused (it said no) or ProtocolViolation
    (its answer is not of `reply_type`). Safe to cancel.
    """
    try:
        async with asyncio.timeout(timeout_s):
            stream = await transport.open(peer_id, protocol)
            try:
                await stream.send(msgspec.msgpack.encode(request))
                frame = await stream.receive(max_bytes)
            finally:
                await stream.close()
    except TimeoutError as error:
        raise PeerTimeout(
            f"peer={short(peer_id)} protocol={protocol} no answer in {timeout_s:.1f} s"
        ) from error
    return parse_reply(peer_id, frame, reply_type)


def parse_reply(peer_id: PeerId, frame: bytes, reply_type: type[A]) -> A:
    """Read a reply frame; raises Refused or ProtocolViolation."""
    if frame[:1] == _ERROR:
        reason = frame[1:501].decode("utf-8", "replace")
        raise Refused(f"peer={short(peer_id)} refused: {reason}")
    if frame[:1] != _OK:
        raise ProtocolViolation(peer_id, "a reply without a status")
    try:
        return msgspec.msgpack.decode(memoryview(frame)[1:], type=reply_type, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolViolation(peer_id, f"a malformed reply: {error}") from error


async def receive_request(stream: Stream, request_type: type[Q]) -> Q:
    """Read the request that opens a stream. Raises ProtocolViolation or TransportError."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            frame = await stream.receive(MAX_CALL_BYTES)
    except TimeoutError as error:
        raise PeerTimeout(f"peer={short(stream.peer_id)} opened a stream, asked nothing") from error
    try:
        return msgspec.msgpack.decode(frame, type=request_type, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolViolation(stream.peer_id, f"a malformed request: {error}") from error


async def send_reply(stream: Stream, reply: object) -> None:
    """Answer a request. Raises TransportError, also where the asker does not take the answer."""
    await _send(stream, _OK + msgspec.msgpack.encode(reply))


async def send_refusal(stream: Stream, reason: str) -> None:
    """Answer a request with a refusal of at most 500 bytes. Raises as `send_reply`."""
    await _send(stream, _ERROR + reason.encode("utf-8", "replace")[:500])


async def _send(stream: Stream, frame: bytes) -> None:
    try:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            await stream.send(frame)
    except TimeoutError as error:
        raise PeerTimeout(f"peer={short(stream.peer_id)} asked, but takes no answer") from error


async def serve_calls(
    transport: Transport,
    protocol: str,
    request_type: type[Q],
    answer: Callable[[PeerId, Q], Awaitable[object]],
) -> None:
    """Answer every request of a protocol with `await answer(peer_id, request)`.

    A ZoonetError raised by `answer` is told to the asker as a refusal; anything else is a bug
    and surfaces in the transport's log.
    """

    async def handle(stream: Stream) -> None:
        request = await receive_request(stream, request_type)
        try:
            reply = await answer(stream.peer_id, request)
        except ZoonetError as error:
            log.debug("refused protocol=%s peer=%s: %s", protocol, short(stream.peer_id), error)
            await send_refusal(stream, str(error))
            return
        await send_reply(stream, reply)

    await transport.serve(protocol, handle)
