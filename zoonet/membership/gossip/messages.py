"""What two peers say to each other: one question, one answer; and both of them on the wire."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.membership.gossip.entries import NUM_BUCKETS
from zoonet.membership.gossip.item import Item

PROTOCOL: Final = "membership"
ID_BYTES: Final = 8
MAX_HAVE: Final = 4096  # ids of what a peer learned lately
MAX_WANT: Final = 512  # ids in one request
MAX_IDS: Final = 65_536  # ids in one answer
MAX_NEWS: Final = 128  # records handed over unasked
MAX_NEWS_BYTES: Final = 128 * 1024
MAX_PAGE_BYTES: Final = 512 * 1024  # records of one answer
MAX_RECORD_BYTES: Final = 8 * 1024  # the largest kind that is gossiped
MAX_FIND: Final = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """A question. All parts may be empty: then it only asks whether the peer is there."""

    is_exchange: bool = True  # answer with news that are not in `have`
    have: tuple[int, ...] = ()  # ids of records learned lately
    sums: array[int] | None = None  # bucket sums of the whole table
    want: tuple[int, ...] = ()  # ids of records to send
    find: tuple[str, ...] = ()  # keys whose records to send
    news: tuple[Item, ...] = ()  # records that the other may lack


@dataclass(frozen=True, slots=True)
class Told:
    """An answer."""

    buckets: tuple[int, ...] = ()  # whose sums differ
    ids: tuple[int, ...] = ()  # of all records in these buckets
    news: tuple[Item, ...] = ()


_Raw = Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)]


class AskWire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Ask` in MessagePack: ids packed in 8 bytes each, records as signed."""

    is_exchange: bool
    have: Annotated[bytes, Meta(max_length=ID_BYTES * MAX_HAVE)]
    sums: Annotated[bytes, Meta(max_length=ID_BYTES * NUM_BUCKETS)]
    want: Annotated[bytes, Meta(max_length=ID_BYTES * MAX_WANT)]
    find: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=MAX_FIND)]
    news: Annotated[tuple[_Raw, ...], Meta(max_length=MAX_NEWS)]


class ToldWire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`Told` in MessagePack."""

    buckets: Annotated[bytes, Meta(max_length=NUM_BUCKETS)]
    ids: Annotated[bytes, Meta(max_length=ID_BYTES * MAX_IDS)]
    news: Annotated[tuple[_Raw, ...], Meta(max_length=2048)]


def pack(ids: Iterable[int]) -> bytes:
    """Eight bytes an id, big-endian."""
    packed = array("Q", ids)
    if _IS_LITTLE:
        packed.byteswap()
    return packed.tobytes()


def unpack(raw: bytes, peer_id: PeerId) -> array[int]:
    """Ids out of `pack`. Raises ProtocolViolation for a broken length."""
    if len(raw) % ID_BYTES:
        raise ProtocolViolation(peer_id, f"{len(raw)} bytes are no list of ids")
    ids = array("Q", raw)
    if _IS_LITTLE:
        ids.byteswap()
    return ids


_IS_LITTLE: Final = array("H", b"\x01\x00")[0] == 1


def to_wire(ask: Ask) -> AskWire:
    """A question as it is sent."""
    return AskWire(
        is_exchange=ask.is_exchange,
        have=pack(ask.have),
        sums=pack(ask.sums) if ask.sums is not None else b"",
        want=pack(ask.want),
        find=ask.find,
        news=tuple(item.record.raw for item in ask.news),
    )


def from_wire(wire: AskWire, peer_id: PeerId, news: tuple[Item, ...]) -> Ask:
    """A question as it is understood, with its records verified. Raises ProtocolViolation."""
    sums = unpack(wire.sums, peer_id) if wire.sums else None
    if sums is not None and len(sums) != NUM_BUCKETS:
        raise ProtocolViolation(peer_id, f"{len(sums)} bucket sums, expected {NUM_BUCKETS}")
    return Ask(
        is_exchange=wire.is_exchange,
        have=tuple(unpack(wire.have, peer_id)),
        sums=sums,
        want=tuple(unpack(wire.want, peer_id)),
        find=wire.find,
        news=news,
    )


def told_to_wire(told: Told) -> ToldWire:
    """An answer as it is sent."""
    return ToldWire(
        buckets=bytes(told.buckets),
        ids=pack(told.ids),
        news=tuple(item.record.raw for item in told.news),
    )


def told_from_wire(wire: ToldWire, peer_id: PeerId, news: tuple[Item, ...]) -> Told:
    """An answer as it is understood, with its records verified. Raises ProtocolViolation."""
    return Told(
        buckets=tuple(wire.buckets),
        ids=tuple(unpack(wire.ids, peer_id)),
        news=news,
    )


def num_ask_bytes(ask: Ask) -> int:
    """Length of a question on the wire, without encoding it."""
    ids = len(ask.have) + len(ask.want) + (NUM_BUCKETS if ask.sums is not None else 0)
    keys = sum(len(key) + 2 for key in ask.find)
    return 12 + ID_BYTES * ids + keys + _num_record_bytes(ask.news)


def num_told_bytes(told: Told) -> int:
    """Length of an answer on the wire, without encoding it."""
    return 10 + len(told.buckets) + ID_BYTES * len(told.ids) + _num_record_bytes(told.news)


def _num_record_bytes(items: tuple[Item, ...]) -> int:
    return sum(item.num_bytes + 3 for item in items)
