"""The Protocols of streams and of bulk lanes between peers, and typed calls over streams."""

from zoonet.transport.calls import (
    MAX_CALL_BYTES,
    Refused,
    call,
    receive_request,
    send_refusal,
    send_reply,
    serve_calls,
)
from zoonet.transport.lanes import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Lane,
    LaneEnded,
    Lanes,
    LineStats,
    LinkStats,
    Path,
    Sink,
)
from zoonet.transport.local import LocalStream, local_pair
from zoonet.transport.scope import ServingScope
from zoonet.transport.stream_lanes import StreamLane, StreamLanes
from zoonet.transport.streams import MAX_FRAME_BYTES, Buffer, Stream, StreamHandler, Transport

__all__ = [
    "MAX_CALL_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Buffer",
    "Lane",
    "LaneEnded",
    "Lanes",
    "LineStats",
    "LinkStats",
    "LocalStream",
    "Path",
    "Refused",
    "ServingScope",
    "Sink",
    "Stream",
    "StreamHandler",
    "StreamLane",
    "StreamLanes",
    "Transport",
    "call",
    "local_pair",
    "receive_request",
    "send_refusal",
    "send_reply",
    "serve_calls",
]
