"""The two kinds of record that membership adds, and how a record stands in a table."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from zoonet.crypto import PeerId, sha256
from zoonet.records import Body, JobList, JobRecord, PeerRecord, Signed, register
from zoonet.records.kinds import Natural

SUBJECT_BYTES: Final = 16
Subject = Annotated[bytes, Meta(min_length=SUBJECT_BYTES, max_length=SUBJECT_BYTES)]


def subject_of(peer_id: PeerId) -> bytes:
    """A peer's name in 16 bytes; the first 8 are its place on the ring."""
    return sha256(b"zoonet-ring/1\x00", peer_id.encode())[:SUBJECT_BYTES]


def member_key(peer_id: str) -> str:
    """Key of a peer's `MemberRecord`."""
    return f"member/{peer_id}"


@register
class MemberRecord(PeerRecord, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `PeerRecord` that stands for hours, since others watch whether the peer lives.

    Its key is another than a heartbeat's: it cannot be replayed on the record store.
    """

    KIND: ClassVar[str] = "member/1"
    MAX_LIFETIME_S: ClassVar[float] = 24 * 3600.0

    def key(self) -> str:
        return member_key(self.peer_id)


@register
class Gone(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A peer is gone, as of this sequence of its record: a goodbye, or a watcher's accusation."""

    KIND: ClassVar[str] = "gone/1"
    MAX_BYTES: ClassVar[int] = 512
    MAX_LIFETIME_S: ClassVar[float] = 24 * 3600.0

    subject: Subject
    seq: Natural

    def key(self) -> str:
        return f"gone/{self.subject.hex()}"


GOSSIPED: Final[dict[str, type[Body]]] = {
    kind.KIND: kind for kind in (MemberRecord, Gone, JobRecord, JobList)
}


class Item:
    """A verified record with what a table needs of it, worked out once. Never changed."""

    __slots__ = (
        "author",
        "expires_at",
        "id",
        "is_member",
        "key",
        "position",
        "record",
        "slot",
        "subject",
    )

    def __init__(self, record: Signed[Any]) -> None:
        body = record.body
        self.record = record
        self.author: PeerId = record.author
        self.expires_at = record.expires_at
        self.id = id_of(record.raw)
        self.key: str = record.key
        self.slot = slot_of(record.author, body.KIND, self.key)
        self.is_member = isinstance(body, MemberRecord)
        # Of a member: itself. Of an accusation: the accused. Of others: empty.
        self.subject: bytes = b""
        if self.is_member:
            self.subject = subject_of(record.author)
        elif isinstance(body, Gone):
            self.subject = body.subject
        self.position = int.from_bytes(self.subject[:8], "big")

    def __lt__(self, other: Item) -> bool:
        return self.expires_at < other.expires_at

    @property
    def num_bytes(self) -> int:
        """Bytes of the record on the wire."""
        return len(self.record.raw)


def key_position(key: str) -> int:
    """The place of a key on the ring; of a peer's own key, the peer's place."""
    kind, _, name = key.partition("/")
    return int.from_bytes(subject_of(PeerId(name if kind == "member" else key))[:8], "big")


def id_of(raw: bytes) -> int:
    """A record's name in digests and lists: 8 bytes of its hash."""
    return int.from_bytes(sha256(raw)[:8], "big")


def slot_of(author: PeerId, kind: str, key: str) -> bytes:
    """Where a record stands: of each slot a table holds the newest record."""
    return sha256(f"{author}\n{kind}\n{key}".encode())[:16]
