"""Names of blocks: CIDv1, sha2-256, base32, as IPFS writes them. Leaves are raw, nodes dag-pb.

https://github.com/multiformats/cid
"""

from __future__ import annotations

import base64
import hashlib
import re
from enum import IntEnum
from typing import Final

from zoonet.errors import DigestMismatch
from zoonet.transport import Buffer


class Codec(IntEnum):
    """What a block's bytes are: https://github.com/multiformats/multicodec."""

    RAW = 0x55
    DAG_PB = 0x70


CID_BYTES: Final = 36
_VERSION: Final = 1
_SHA2_256: Final = b"\x12\x20"  # and its 32 bytes
_SHAPE: Final = re.compile(r"bafkrei[a-z2-7]{52}|bafybei[a-z2-7]{52}")


def cid_of(data: Buffer, codec: Codec = Codec.RAW) -> str:
    """Return the name of these bytes (59 characters)."""
    return text_of(bytes((_VERSION, codec)) + _SHA2_256 + hashlib.sha256(data).digest())


def text_of(raw: bytes) -> str:
    """A name's text, of its CID_BYTES bytes. Raises ValueError for one of another kind."""
    text = "b" + base64.b32encode(raw).decode("ascii").rstrip("=").lower()
    if not is_cid(text):
        raise ValueError(f"{text[:80]!r} is not the name of a block")
    return text


def bytes_of(cid: str) -> bytes:
    """A name's CID_BYTES bytes. For text that `is_cid`."""
    text = cid[1:].upper()
    return base64.b32decode(text + "=" * (-len(text) % 8))


def codec_of(cid: str) -> Codec:
    """What the bytes of that name are. For text that `is_cid`."""
    return Codec(bytes_of(cid)[1])


def is_cid(text: str) -> bool:
    """Tell whether the text is shaped like a name that `cid_of` returns."""
    return _SHAPE.fullmatch(text) is not None


def check(cid: str, data: Buffer, *, peer: str = "") -> None:
    """Raise DigestMismatch, which names the peer, where the bytes are not those of the name."""
    found = cid_of(data, codec_of(cid))
    if found != cid:
        raise DigestMismatch(peer, f"bytes of {found} were sent or stored as {cid}")
