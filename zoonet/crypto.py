"""One secp256k1 key is everything: libp2p identity, signer of records, and EVM account.

The peer id is libp2p's: base58 of the identity multihash of the `PublicKey` protobuf
(https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md). It embeds the public key, so a
signature is checked with nothing but the peer id.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import NewType

import base58
import coincurve
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zoonet.errors import KeyFileError

PeerId = NewType("PeerId", str)

SIGNATURE_BYTES = 65
PUBLIC_KEY_BYTES = 33
_PRIVATE_PROTOBUF = b"\x08\x02\x12\x20"  # PrivateKey { type: Secp256k1, data: 32 bytes }
_PUBLIC_PROTOBUF = b"\x08\x02\x12\x21"  # PublicKey  { type: Secp256k1, data: 33 bytes }
_IDENTITY_MULTIHASH = b"\x00\x25"  # code 0 (identity), 37 bytes
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the libp2p peer id of a compressed public key (33 bytes)."""
    return PeerId(base58.b58encode(_IDENTITY_MULTIHASH + _PUBLIC_PROTOBUF + public_key).decode())


def public_key_of(peer_id: str) -> bytes:
    """Return the compressed public key (33 bytes) that a peer id embeds.

    Raises ValueError where the id is not that of a secp256k1 key.
    """
    if not 50 <= len(peer_id) <= 60:
        raise ValueError(f"{peer_id[:60]!r} is not a peer id of a secp256k1 key")
    raw = base58.b58decode(peer_id)
    prefix = _IDENTITY_MULTIHASH + _PUBLIC_PROTOBUF
    if len(raw) != len(prefix) + PUBLIC_KEY_BYTES or not raw.startswith(prefix):
        raise ValueError(f"{peer_id!r} is not a peer id of a secp256k1 key")
    return bytes(raw[len(prefix) :])


@lru_cache(maxsize=4096)
def is_peer_id(text: str) -> bool:
    """Tell whether this is the peer id of some secp256k1 key."""
    try:
        coincurve.PublicKey(public_key_of(text))
    except ValueError:
        return False
    return True


def short(peer_id: str) -> str:
    """Return the last eight characters: what logs and tables show of a peer id."""
    return peer_id[-8:]


def sha256(*parts: bytes) -> bytes:
    """Digest (32 bytes) of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def signer_of(digest: bytes, signature: bytes) -> PeerId:
    """Return who signed the 32-byte digest.

    Raises ValueError for a signature that is malformed or not in its low-s form (each message
    has one valid form, so a signature cannot be altered in transit).
    """
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"a signature of {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise ValueError("a signature with a high s")
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except Exception as error:  # coincurve raises bare Exception for what cannot be recovered
        raise ValueError(f"an unrecoverable signature: {error}") from error
    return peer_id_of(key.format(compressed=True))


class Identity:
    """A peer's key pair. Signs; never prints its secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise KeyFileError(f"a secret key has 32 bytes, this one {len(secret)}")
        try:
            self._key = coincurve.PrivateKey(secret)
        except ValueError as error:
            raise KeyFileError("this secret is not a valid secp256k1 key") from error
        self.public_key: bytes = self._key.public_key.format(compressed=True)
        self.peer_id: PeerId = peer_id_of(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def generate(cls) -> Identity:
        """Make a new random key."""
        return cls(coincurve.PrivateKey().secret)

    @classmethod
    def from_api_key(cls, api_key: str) -> Identity:
        """Read the exported form: 64 hexadecimal digits, with or without `0x`."""
        try:
            return cls(bytes.fromhex(api_key.strip().removeprefix("0x")))
        except ValueError as error:
            raise KeyFileError(
                "the API key is not 64 hexadecimal digits; print yours with: zoonet key export"
            ) from error

    @property
    def api_key(self) -> str:
        """The secret in its exported form. Whoever has it is this peer."""
        return str(self._key.secret.hex())

    def sign(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest: r, s, recovery id (65 bytes)."""
        return bytes(self._key.sign_recoverable(digest, hasher=None))

    def libp2p_private_key(self) -> bytes:
        """The key as libp2p's `PrivateKey` protobuf, which the daemon reads from a file."""
        return _PRIVATE_PROTOBUF + bytes(self._key.secret)

    def save(self, path: Path, *, passphrase: str = "") -> None:
        """Write the key as PKCS #8 PEM with mode 0600; never overwrites a file."""
        key = ec.derive_private_key(int.from_bytes(self._key.secret, "big"), ec.SECP256K1())
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase.encode())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    @classmethod
    def load(cls, path: Path, *, passphrase: str = "") -> Identity:
        """Read a key file.

        Raises KeyFileError where it is missing, readable by others, damaged or locked.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            pem = path.read_bytes()
        except OSError as error:
            raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from error
        if mode & 0o077:
            raise KeyFileError(
                f"the key file {path} can be read by others (mode {mode:04o}); "
                f"close it with: chmod 600 {path}"
            )
        try:
            password = passphrase.encode() if passphrase else None
            key = serialization.load_pem_private_key(pem, password)
        except TypeError as error:
            wrong = "is not locked and takes no passphrase" if passphrase else "needs a passphrase"
            raise KeyFileError(f"the key file {path} {wrong}") from error
        except ValueError as error:
            raise KeyFileError(
                f"the key file {path} is damaged or the passphrase is wrong"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256k1":
            raise KeyFileError(f"the key file {path} holds another kind of key, not secp256k1")
        return cls(key.private_numbers().private_value.to_bytes(32, "big"))

    @classmethod
    def load_or_create(cls, path: Path, *, passphrase: str = "") -> Identity:
        """Read the key file, or make a key and write it there on the first run."""
        if not path.exists():
            identity = cls.generate()
            identity.save(path, passphrase=passphrase)
            return identity
        return cls.load(path, passphrase=passphrase)
