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
from zoonet.transport.streams import MAX_FRAME_BYTES, Buffer, Stream, StreamHandler, Transport

__all__ = [
    "MAX_CALL_BYTES",
    "MAX_FRAME_BYTES",
    "Buffer",
    "Refused",
    "Stream",
    "StreamHandler",
    "Transport",
    "call",
    "receive_request",
    "send_refusal",
    "send_reply",
    "serve_calls",
]
