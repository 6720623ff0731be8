"""Peers and transfers in the words of messages to users."""

from __future__ import annotations

from zoonet.crypto import PeerId, short
from zoonet.distributed.memory import dtype_name
from zoonet.distributed.wire import Op, Spec


def spec_words(spec: Spec) -> str:
    """What is transferred."""
    is_shaped = spec.op == Op.POINT_TO_POINT
    size = f"of shape {spec.shape}" if is_shaped else f"of {spec.num_bytes} bytes"
    return f"{Op(spec.op).words} {size}, {dtype_name(spec.dtype)}"


def peer_words(rank: int, peer_id: PeerId) -> str:
    """A member."""
    return f"rank {rank} (peer {short(peer_id)})"
