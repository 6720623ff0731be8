"""Names of blocks: CIDv1, raw codec, sha2-256, base32, as IPFS writes them.

https://github.com/multiformats/cid
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

from zoonet.errors import DigestMismatch
from zoonet.transport import Buffer

_PREFIX: Final = b"\x01\x55\x12\x20"  # version 1, raw, sha2-256, 32 bytes
_SHAPE: Final = re.compile(r"bafkrei[a-z2-7]{52}")


def cid_of(data: Buffer) -> str:
    """Return the name of these bytes (59 characters)."""
    raw = _PREFIX + hashlib.sha256(data).digest()
    return "b" + base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def is_cid(text: str) -> bool:
    """Tell whether the text is shaped like a name that `cid_of` returns."""
    return _SHAPE.fullmatch(text) is not None


def check(cid: str, data: Buffer, *, peer: str = "") -> None:
    """Raise DigestMismatch, which names the peer, where the bytes are not those of the name."""
    found = cid_of(data)
    if found != cid:
        raise DigestMismatch(peer, f"bytes of {found} were sent or stored as {cid}")
