"""The one door through which hivemind enters, with what its import changes put back.

Importing hivemind sets torch's sharing strategy, installs a log handler and renames a log level.
A library does none of that to its host program, so it is undone here.
"""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path

import torch.multiprocessing

_sharing_strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]

import google.protobuf.message  # type: ignore[import-untyped]  # noqa: E402
import hivemind.dht.node  # noqa: E402
import hivemind.hivemind_cli  # noqa: E402
from hivemind.dht.crypto import RecordValidatorBase  # noqa: E402
from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.protocol import DHTProtocol, ValidationError  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.traverse import traverse_dht  # noqa: E402
from hivemind.p2p import P2P, P2PContext, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import (  # noqa: E402
    ControlFailure,
    DispatchFailure,
    P2PDaemonError,
    P2PHandlerError,
)
from hivemind.proto import dht_pb2, p2pd_pb2  # noqa: E402
from hivemind.utils.logging import use_hivemind_log_handler  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr as SocketAddress  # noqa: E402
from hivemind.utils.timed_storage import ValueWithExpiration  # noqa: E402
from multiaddr import Multiaddr  # noqa: E402

torch.multiprocessing.set_sharing_strategy(_sharing_strategy)  # type: ignore[no-untyped-call]
use_hivemind_log_handler("nowhere")
logging.addLevelName(logging.WARNING, "WARNING")
# Its warnings are tracebacks of what remote peers did wrong: anyone could fill an operator's log.
logging.getLogger("hivemind").setLevel(logging.ERROR)
logging.getLogger("multiaddr").setLevel(logging.WARNING)  # it logs every byte that it parses


ProtobufDecodeError = google.protobuf.message.DecodeError
ProtobufEncodeError = google.protobuf.message.EncodeError


def socket_address(path: Path) -> SocketAddress:
    """The multiaddr of a local socket, as the daemon reads it.

    hivemind's own multiaddr class serves for these alone: it writes peer ids of secp256k1 keys in
    a form that the daemon does not read, while the `multiaddr` package drops a path's first slash.
    """
    return SocketAddress(f"/unix{path}")


def use_protocol(protocol_type: type) -> None:
    """Make every DHT node of this process speak `protocol_type`.

    `DHTNode.create` names its protocol class in its own module and takes no other.
    """
    hivemind.dht.node.DHTProtocol = protocol_type


def daemon_binary() -> Path:
    """Where the libp2p daemon that comes with hivemind lies."""
    return Path(str(resources.files(hivemind.hivemind_cli) / "p2pd"))


__all__ = [
    "DHTID",
    "P2P",
    "ControlFailure",
    "DHTNode",
    "DHTProtocol",
    "DispatchFailure",
    "Multiaddr",
    "P2PContext",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerID",
    "ProtobufDecodeError",
    "ProtobufEncodeError",
    "RecordValidatorBase",
    "SocketAddress",
    "ValidationError",
    "ValueWithExpiration",
    "daemon_binary",
    "dht_pb2",
    "p2pd_pb2",
    "socket_address",
    "traverse_dht",
    "use_protocol",
]
