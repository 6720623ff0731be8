"""Plain and TLS 1.3 sockets, blocking, for contenders that are as bare as can be."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BLOCK_BYTES: Final = 1 << 20
CONNECT_S: Final = 30.0
_NUMBER_BYTES: Final = 2


def listen(address: str) -> socket.socket:
    """Listen on any free port of an address."""
    return socket.create_server((address, 0), backlog=256)


def exchange(
    listener: socket.socket,
    me: int,
    places: dict[int, tuple[str, int]],
    num_incoming: int,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> tuple[dict[int, socket.socket], dict[int, socket.socket]]:
    """Connect to everyone in `places`, and accept so many: (outgoing, incoming), by peer.

    `tls` are contexts of a client and a server; without them the bytes are in the clear.
    """
    with ThreadPoolExecutor(1) as accepting:
        incoming = accepting.submit(_accept_all, listener, num_incoming, tls and tls[1])
        outgoing = {}
        for peer, place in places.items():
            made = socket.create_connection(place, timeout=CONNECT_S)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(None)
            if tls is not None:
                made = tls[0].wrap_socket(made)
            made.sendall(me.to_bytes(_NUMBER_BYTES, "big"))
            outgoing[peer] = made
        return outgoing, incoming.result()


def _accept_all(
    listener: socket.socket, count: int, context: ssl.SSLContext | None
) -> dict[int, socket.socket]:
    accepted: dict[int, socket.socket] = {}
    listener.settimeout(CONNECT_S)
    while len(accepted) < count:
        made, _ = listener.accept()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(None)
        if context is not None:
            made = context.wrap_socket(made, server_side=True)
        number = bytearray(_NUMBER_BYTES)
        receive_into(made, memoryview(number))
        accepted[int.from_bytes(number, "big")] = made
    return accepted


def send_all(target: socket.socket, payload: memoryview) -> None:
    """Send a buffer, a block at a time."""
    for start in range(0, len(payload), BLOCK_BYTES):
        target.sendall(payload[start : start + BLOCK_BYTES])


def receive_into(source: socket.socket, payload: memoryview) -> None:
    """Fill a buffer. Raises ConnectionError where the other side has gone."""
    start = 0
    while start < len(payload):
        received = source.recv_into(payload[start : start + BLOCK_BYTES])
        if not received:
            raise ConnectionError("the other side closed the connection")
        start += received


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close them, whatever state they are in."""
    for one in sockets:
        with contextlib.suppress(OSError):  # already gone
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def tls_contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a client and of a server: TLS 1.3, encrypted, nobody's identity checked."""
    certificate = folder / "floor.pem"
    if not certificate.exists():
        certificate.write_bytes(_self_signed())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    server.num_tickets = 0  # nobody comes back
    for context in (client, server):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return client, server


def _self_signed() -> bytes:
    """A key and its certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "floor")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
