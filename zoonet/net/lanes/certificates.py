"""Ephemeral certificates, pinned both ways: TLS 1.3 between exactly these two peers.

A certificate proves nothing by itself: each side has learned the other's over a stream whose
peer id the transport has proven, and takes that one and no other.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation

LIFETIME_S: Final = 7 * 24 * 3600.0
CLOCK_SLACK_S: Final = 24 * 3600.0  # other peers' clocks may be that far behind


@dataclass(frozen=True, slots=True)
class Credentials:
    """This peer's certificate (DER) and, in `pem`, the same with its key."""

    certificate: bytes
    pem: bytes = field(repr=False)
    renew_at: float  # Unix time


def make_credentials(now: float, *, lifetime_s: float = LIFETIME_S) -> Credentials:
    """Make a P-256 key and a self-signed certificate that expires at `now + lifetime_s`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zoonet")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now - CLOCK_SLACK_S, UTC))
        .not_valid_after(datetime.fromtimestamp(now + lifetime_s, UTC))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    return Credentials(der, pem, renew_at=now + lifetime_s / 2)


def check_certificate(peer_id: PeerId, der: bytes, now: float) -> None:
    """Raise ProtocolViolation unless this is a P-256 certificate that is valid now."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ProtocolViolation(peer_id, f"a malformed certificate: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ProtocolViolation(peer_id, "a certificate of another kind of key, not P-256")
    end = certificate.not_valid_after_utc.timestamp()
    if not certificate.not_valid_before_utc.timestamp() <= now < end:
        raise ProtocolViolation(peer_id, "a certificate that has expired or is not valid yet")


def tls_context(own: Credentials, other: bytes, *, is_server: bool) -> ssl.SSLContext:
    """A context that speaks TLS 1.3 with whoever has the key of the certificate `other` (DER)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if is_server:
        context.num_tickets = 0  # nothing is ever resumed
    context.load_verify_locations(cadata=other)
    with _as_file(own.pem) as path:
        context.load_cert_chain(path)
    return context


def check_presented(peer_id: PeerId, connection: ssl.SSLSocket, pinned: bytes) -> None:
    """Raise ProtocolViolation unless the other side presented the pinned certificate itself."""
    if connection.getpeercert(binary_form=True) != pinned:
        raise ProtocolViolation(peer_id, "another certificate than the one it announced")


@contextmanager
def _as_file(pem: bytes) -> Iterator[str]:
    """A path at which `ssl`, which reads keys from files alone, finds the PEM."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("zoonet-key", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(pem)
        file.flush()
        yield file.name
