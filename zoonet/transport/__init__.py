"""The Protocol of streams between peers, and typed calls over it."""

from zoonet.transport.calls import (
    MAX_CALL_BYTES,
    Refused,
    call,
    receive_request,
    send_refusal,
    send_reply,
    serve_calls,
)
from zoonet.transport.local import LocalStream, local_pair
from zoonet.transport.streams import MAX_FRAME_BYTES, Buffer, Stream, StreamHandler, Transport

__all__ = [
    "MAX_CALL_BYTES",
    "MAX_FRAME_BYTES",
    "Buffer",
    "LocalStream",
    "Refused",
    "Stream",
    "StreamHandler",
    "Transport",
    "call",
    "local_pair",
    "receive_request",
    "send_refusal",
    "send_reply",
    "serve_calls",
]
