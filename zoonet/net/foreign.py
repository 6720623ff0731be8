"""Foreign exceptions become ours here, and nowhere else.

`FOREIGN` lists every exception type that hivemind, the daemon's bindings, multiaddr, protobuf and
asyncio's streams define or raise on us; a test fails when one of them defines another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import multiaddr.exceptions

from zoonet.crypto import short
from zoonet.errors import (
    ConfigError,
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    TransportError,
    ZoonetError,
)
from zoonet.net.substrate import (
    ControlFailure,
    DispatchFailure,
    P2PDaemonError,
    P2PHandlerError,
    ProtobufDecodeError,
    ProtobufEncodeError,
    ValidationError,
)

# The first entry that an exception is an instance of decides.
FOREIGN: Final[tuple[tuple[type[BaseException], type[ZoonetError]], ...]] = (
    (ControlFailure, PeerUnreachable),  # the daemon could not dial or open
    (DispatchFailure, ProtocolViolation),  # a stream for a protocol that is not served
    (P2PHandlerError, TransportError),  # the other side's handler failed
    (P2PDaemonError, TransportError),  # the daemon refused or is gone
    (ValidationError, TransportError),  # a DHT node that cannot reach us back
    (ProtobufDecodeError, ProtocolViolation),
    (ProtobufEncodeError, TransportError),
    (multiaddr.exceptions.Error, ConfigError),
    (asyncio.IncompleteReadError, StreamClosed),
    (asyncio.LimitOverrunError, ProtocolViolation),
    (TimeoutError, PeerTimeout),
    (ConnectionRefusedError, PeerUnreachable),
    (ConnectionError, StreamClosed),
    (OSError, TransportError),
)

FOREIGN_TYPES: Final[tuple[type[BaseException], ...]] = tuple(kind for kind, _ in FOREIGN)


def translate(error: BaseException, *, peer_id: str = "", doing: str = "") -> ZoonetError:
    """Return our exception for a foreign one.

    Raises TypeError for an exception that FOREIGN does not list: a bug, which must stay visible.
    """
    ours = next((ours for foreign, ours in FOREIGN if isinstance(error, foreign)), None)
    if ours is None:
        raise TypeError(f"an unmapped foreign exception {type(error).__name__}") from error
    words = str(error) or type(error).__name__
    if ours is ProtocolViolation:
        return ProtocolViolation(peer_id, f"{doing}: {words}" if doing else words)
    where = f"peer={short(peer_id)} " if peer_id else ""
    return ours(f"{where}{doing}: {words}" if doing else f"{where}{words}")


@contextmanager
def foreign_errors(*, peer_id: str = "", doing: str = "") -> Iterator[None]:
    """Let only our own exceptions out of the block."""
    try:
        yield
    except ZoonetError:
        raise
    except FOREIGN_TYPES as error:
        raise translate(error, peer_id=peer_id, doing=doing) from error
