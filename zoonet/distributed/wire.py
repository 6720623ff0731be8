"""What the members of a process group tell each other, in the headers of lane messages.

A transfer moves one tensor, or a part of one, from one peer to another::

    sender                          receiver
    OFFER: this is what I have  ->
                                <-  WANT: and this is what I have room for
    DATA, in chunks             ->  into the receiver's own memory
                                <-  DONE: all of it is there

Either side may speak first. No payload leaves before the receiver has said where it belongs, so
what nobody waits for costs a note of a few bytes, not memory, and never blocks a lane. A transfer
of no bytes ends with its OFFER.

The exception saves small tensors a round trip: while a sender has credit with the receiver, it
sends them unasked::

    EARLY: this is it           ->  into the receive's memory, or put aside
                                <-  DONE: all of it is there
                                <-  TAKEN: it lies where it belongs; the credit is yours again
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, NamedTuple

import msgspec

from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.transport import MAX_HEADER_BYTES

CHUNK_BYTES: Final = 1024 * 1024  # of a transfer's payload that travel in one message
EARLY_BYTES: Final = CHUNK_BYTES  # the longest transfer that may come unasked
CREDIT_BYTES: Final = 16 * 1024 * 1024  # that may lie aside at a receiver, for each sender
GROUP_BYTES: Final = 16
MAX_DIMENSIONS: Final = 32  # of a tensor
MAX_NOTE_CHARACTERS: Final = 300
MAX_RANKS: Final = 200

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Signed32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]


class Kind(IntEnum):
    """What a message is about."""

    HELLO = 0  # the lane is open; `note`: digest of the list of peers
    BEAT = 1  # still there
    BYE = 2  # leaving in good order
    OFFER = 3
    WANT = 4
    DATA = 5
    DONE = 6
    FAIL = 7  # the group has failed here; `note` says why
    EARLY = 8
    TAKEN = 9
    LOST = 10  # the sender is about to form a group without these `ranks`


class Op(IntEnum):
    """The operation that a transfer belongs to."""

    POINT_TO_POINT = 0
    ALL_REDUCE = 1
    BROADCAST = 2
    ALL_GATHER = 3
    REDUCE_SCATTER = 4
    BARRIER = 5
    REDUCE = 6
    GATHER = 7
    SCATTER = 8
    ALL_TO_ALL = 9

    @property
    def words(self) -> str:
        """As users know it."""
        return "send/recv" if self is Op.POINT_TO_POINT else self.name.lower()


class Key(NamedTuple):
    """Names one transfer between two peers of a group; both derive it by themselves."""

    group: bytes
    stream: int  # 0: collectives, by their number; 1: send and recv, by number and tag
    number: int
    tag: int  # of send and recv; of a collective: the step
    part: int


class Spec(NamedTuple):
    """What is transferred; both sides must mean the same."""

    op: int
    dtype: int  # place in `zoonet.distributed.memory.DTYPES`
    num_bytes: int
    shape: tuple[int, ...] = ()  # of send and recv alone


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The header of a lane message."""

    kind: Kind
    group: Annotated[bytes, msgspec.Meta(max_length=GROUP_BYTES)] = b""
    stream: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    number: Number = 0
    tag: Signed32 = 0
    part: Number = 0
    op: Op = Op.POINT_TO_POINT
    dtype: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0
    num_bytes: Number = 0  # of the whole transfer
    shape: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)] = ()
    offset: Number = 0  # of this chunk
    note: Annotated[str, msgspec.Meta(max_length=MAX_NOTE_CHARACTERS)] = ""
    ranks: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_RANKS)] = ()

    @property
    def key(self) -> Key:
        """The transfer that it is about."""
        return Key(self.group, self.stream, self.number, self.tag, self.part)

    @property
    def spec(self) -> Spec:
        """What its sender means by that transfer."""
        return Spec(self.op, self.dtype, self.num_bytes, self.shape)

    def encode(self) -> bytes:
        """As bytes, at most a lane's header."""
        return _ENCODER.encode(self)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


def about(kind: Kind, key: Key, spec: Spec, offset: int = 0) -> bytes:
    """The header of a message about a transfer."""
    return Message(kind, *key, Op(spec.op), spec.dtype, spec.num_bytes, spec.shape, offset).encode()


def decode(peer_id: PeerId, header: bytes) -> Message:
    """Read a header. Raises ProtocolViolation."""
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolViolation(peer_id, f"a header of {len(header)} bytes")
    try:
        return _DECODER.decode(header)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolViolation(peer_id, f"a malformed header: {error}") from error
