"""The only decoder for what other DHT nodes send.

hivemind's own recurses natively on its tuple extension, and the DHT decodes before it validates:
a small nested message ends the process. Ours reads exactly the shapes that our records take on
the wire (a text, bytes, or one flat dictionary of them), by a typed decoder that never recurses.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zoonet.errors import ProtocolViolation

MAX_DICTIONARY_BYTES: Final = 1536 * 1024
MAX_DICTIONARY_ENTRIES: Final = 4096
_DICTIONARY_EXTENSION: Final = 0x50  # as hivemind registered it

Entry = tuple[str, bytes, float]  # author, MessagePack of the record's bytes, expiry (Unix time)

# UnicodeDecodeError, a ValueError, is none of msgspec's own errors.
MALFORMED: Final = (msgspec.DecodeError, ValueError, RecursionError)

_text = msgspec.msgpack.Decoder(str, strict=True)
_bytes = msgspec.msgpack.Decoder(bytes, strict=True)
_extension = msgspec.msgpack.Decoder(msgspec.msgpack.Ext, strict=True)
_entries = msgspec.msgpack.Decoder(
    tuple[float | None, float, list[tuple[str, bytes, float]]], strict=True
)


def decode_text(raw: bytes) -> str:
    """Read a subkey. Raises ProtocolViolation."""
    try:
        return _text.decode(raw)
    except MALFORMED as error:
        raise ProtocolViolation("", f"a malformed subkey: {error}") from error


def decode_bytes(raw: bytes) -> bytes:
    """Read a value. Raises ProtocolViolation."""
    try:
        return _bytes.decode(raw)
    except MALFORMED as error:
        raise ProtocolViolation("", f"a malformed value: {error}") from error


def encode(value: str | bytes) -> bytes:
    """Write a subkey or a value."""
    return msgspec.msgpack.encode(value)


def decode_entries(raw: bytes) -> list[Entry]:
    """Read a dictionary's entries. Raises ProtocolViolation."""
    if len(raw) > MAX_DICTIONARY_BYTES:
        raise ProtocolViolation("", f"a dictionary of {len(raw)} bytes")
    try:
        extension = _extension.decode(raw)
        if extension.code != _DICTIONARY_EXTENSION:
            raise ProtocolViolation("", f"an unknown extension {extension.code}")
        _, _, entries = _entries.decode(extension.data)
    except MALFORMED as error:
        raise ProtocolViolation("", f"a malformed dictionary: {error}") from error
    if len(entries) > MAX_DICTIONARY_ENTRIES:
        raise ProtocolViolation("", f"a dictionary of {len(entries)} entries")
    return entries


def encode_entries(entries: list[Entry]) -> bytes:
    """Write a dictionary in hivemind's form."""
    latest = max((expires_at for _, _, expires_at in entries), default=0.0)
    payload = msgspec.msgpack.encode((None, latest, entries))
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(_DICTIONARY_EXTENSION, payload))


class StrictSerializer:
    """In the place of hivemind's `MSGPackSerializer`, for whatever of its code still asks it."""

    @staticmethod
    def dumps(value: object) -> bytes:
        """Encode a key, a subkey or a value."""
        return msgspec.msgpack.encode(value)

    @staticmethod
    def loads(raw: bytes) -> object:
        """Decode a text. Raises ProtocolViolation for anything else."""
        return decode_text(raw)
