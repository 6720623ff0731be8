"""Signed, expiring, versioned records: the only way in which peers make claims to each other.

On the wire a record is a MessagePack array::

    [kind, author's public key, sequence, expires_at, body, signature]

`body` is canonical MessagePack (one encoding for each value), the signature covers everything
before it under a domain tag. `verify` is the only way to obtain a `Signed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import msgspec

from zoonet.crypto import PUBLIC_KEY_BYTES, Identity, PeerId, peer_id_of, sha256, signer_of
from zoonet.errors import InvalidRecord

MAX_RECORD_BYTES: Final = 64 * 1024
MAX_CLOCK_SKEW_S: Final = 300.0
LEAST_GUARDED: Final = 256  # entries of a guard below which none is worth forgetting
_DOMAIN: Final = b"zoonet-record/1\x00"

REASONS: Final = (
    "oversized",  # more bytes than its kind may have
    "malformed",  # not MessagePack, not canonical, or not the fields of its kind
    "unknown-kind",  # a kind or version that this program does not know
    "forged",  # the signature is not the author's
    "expired",  # its time has passed
    "long-lived",  # it claims to live longer than its kind may
    "misplaced",  # stored or sent under another key, subkey or topic than its own
    "replayed",  # an older sequence number than one seen before
    "equivocation",  # two records of one author with the same sequence number
)


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a record says. Subclasses name their `KIND`, give their key and check their values.

    A subclass raises ValueError in `__post_init__` for values that the types cannot exclude.
    """

    KIND: ClassVar[str]
    MAX_BYTES: ClassVar[int] = 8 * 1024
    MAX_LIFETIME_S: ClassVar[float] = 3600.0

    def key(self) -> str:
        """The one key of the record store under which this body may stand."""
        raise NotImplementedError

    def check_author(self, author: PeerId) -> None:
        """Raise ValueError where this author may not say this."""


B = TypeVar("B", bound=Body)
_KINDS: dict[str, type[Body]] = {}


def register(body_type: type[B]) -> type[B]:
    """Make a body type known to `verify` (class decorator)."""
    if body_type.KIND in _KINDS:
        raise ValueError(f"two record types of the kind {body_type.KIND}")
    _KINDS[body_type.KIND] = body_type
    return body_type


def registered_kinds() -> dict[str, type[Body]]:
    """All registered body types by kind."""
    return dict(_KINDS)


@dataclass(frozen=True, slots=True)
class Signed(Generic[B]):
    """A record whose signature, time and shape have been checked."""

    body: B
    author: PeerId
    sequence: int
    expires_at: float
    raw: bytes

    @property
    def key(self) -> str:
        """The record store's key for this record."""
        return self.body.key()

    @property
    def slot(self) -> tuple[str, str, str]:
        """Author, kind and key: of these, only the newest record counts."""
        return self.author, self.body.KIND, self.key

    def is_newer_than(self, other: Signed[Any]) -> bool:
        """Tell whether this record replaces the other one of the same author and key."""
        return self.sequence > other.sequence

    def expect(self, body_type: type[B]) -> Self:
        """Return self where the body is of that type, else raise InvalidRecord."""
        if not isinstance(self.body, body_type):
            found = self.body.KIND
            raise InvalidRecord(self.author, "misplaced", f"{found}, expected {body_type.KIND}")
        return self


_Wire = tuple[str, bytes, int, float, bytes, bytes]
_encoder = msgspec.msgpack.Encoder(order="sorted")
_wire_decoder = msgspec.msgpack.Decoder(_Wire, strict=True)


def canonical(value: object) -> bytes:
    """Encode as canonical MessagePack: sorted keys, shortest forms."""
    return _encoder.encode(value)


def _payload_digest(
    kind: str, public_key: bytes, sequence: int, expires_at: float, body: bytes
) -> bytes:
    return sha256(_DOMAIN, canonical((kind, public_key, sequence, expires_at, body)))


def sign(identity: Identity, body: B, *, sequence: int, expires_at: float) -> Signed[B]:
    """Sign a body. `expires_at` is Unix time in seconds; a higher `sequence` replaces a lower."""
    encoded = canonical(body)
    head = (body.KIND, identity.public_key, sequence, float(expires_at), encoded)
    raw = canonical((*head, identity.sign(_payload_digest(*head))))
    if len(raw) > body.MAX_BYTES:
        raise ValueError(f"a {body.KIND} of {len(raw)} bytes, at most {body.MAX_BYTES}")
    return Signed(body, identity.peer_id, sequence, float(expires_at), raw)


def verify(raw: bytes, *, now: float) -> Signed[Any]:
    """Check a record's size, shape, signature and time, in this order, and return it.

    `now` is Unix time in seconds. Raises InvalidRecord with one of `REASONS`.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise InvalidRecord("", "oversized", f"{len(raw)} bytes")
    try:
        kind, public_key, sequence, expires_at, encoded, signature = _wire_decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRecord("", "malformed", str(error)) from error
    body_type = _KINDS.get(kind)
    if body_type is None:
        raise InvalidRecord("", "unknown-kind", kind[:40])
    if len(raw) > body_type.MAX_BYTES:
        raise InvalidRecord("", "oversized", f"{kind} of {len(raw)} bytes")
    if len(public_key) != PUBLIC_KEY_BYTES or sequence < 0 or not math.isfinite(expires_at):
        raise InvalidRecord("", "malformed", f"{kind} with a wrong header")
    author = peer_id_of(public_key)
    try:
        signer = signer_of(
            _payload_digest(kind, public_key, sequence, expires_at, encoded), signature
        )
    except ValueError as error:
        raise InvalidRecord(author, "forged", str(error)) from error
    if signer != author:
        raise InvalidRecord(author, "forged", f"{kind} was signed by {signer[-8:]}")
    if expires_at <= now:
        raise InvalidRecord(author, "expired", f"{kind} ended {now - expires_at:.0f} s ago")
    if expires_at > now + body_type.MAX_LIFETIME_S + MAX_CLOCK_SKEW_S:
        raise InvalidRecord(author, "long-lived", f"{kind} for {expires_at - now:.0f} s")
    body = _decode_body(body_type, encoded, author)
    record: Signed[Any] = Signed(body, author, sequence, expires_at, raw)
    if canonical((kind, public_key, sequence, expires_at, encoded, signature)) != raw:
        raise InvalidRecord(author, "malformed", f"{kind} is not in canonical form")
    return record


def _decode_body(body_type: type[Body], encoded: bytes, author: PeerId) -> Body:
    try:
        body = msgspec.msgpack.decode(encoded, type=body_type, strict=True)
        body.check_author(author)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRecord(author, "malformed", f"{body_type.KIND}: {error}") from error
    if canonical(body) != encoded:
        raise InvalidRecord(author, "malformed", f"{body_type.KIND} is not in canonical form")
    return body


class ReplayGuard:
    """Remembers the newest record of each (author, kind, key) and refuses what is older.

    What has expired is forgotten now and then (`verify` refuses it anyway), and past `capacity`
    entries also those that expire first.
    """

    def __init__(self, now: Callable[[], float], *, capacity: int = 50_000) -> None:
        self._now = now
        self._capacity = capacity
        self._newest: dict[tuple[str, str, str], tuple[int, float, bytes]] = {}
        self._look_at = LEAST_GUARDED  # entries: then some may have expired

    def __len__(self) -> int:
        return len(self._newest)

    def admit(self, record: Signed[Any]) -> None:
        """Raise InvalidRecord for a replay or an equivocation; the same bytes may come again."""
        slot, digest = record.slot, sha256(record.raw)
        known = self._newest.get(slot)
        if known is not None and known[1] > self._now():
            if record.sequence < known[0]:
                raise InvalidRecord(
                    record.author, "replayed", f"{slot[1]} {record.sequence} < {known[0]}"
                )
            if record.sequence == known[0] and digest != known[2]:
                raise InvalidRecord(
                    record.author, "equivocation", f"{slot[1]} {record.sequence} stands twice"
                )
        self._newest[slot] = (record.sequence, record.expires_at, digest)
        if len(self._newest) > min(self._look_at, self._capacity):
            self._forget()

    def _forget(self) -> None:
        now = self._now()
        self._newest = {slot: entry for slot, entry in self._newest.items() if entry[1] > now}
        if len(self._newest) > self._capacity:
            by_expiry = sorted(self._newest.items(), key=lambda entry: entry[1][1])
            self._newest = dict(by_expiry[len(by_expiry) // 4 :])
        self._look_at = max(LEAST_GUARDED, 2 * len(self._newest))
