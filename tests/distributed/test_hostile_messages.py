"""What a mailbox refuses, from whom, and that nothing of it lands anywhere."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.networks import identity_of
from tests.distributed.worlds import MemoryWorld
from zoonet.crypto import PeerId
from zoonet.distributed import Group
from zoonet.distributed.mailbox import Mailbox
from zoonet.distributed.notes import MAX_NOTES
from zoonet.distributed.wire import (
    CHUNK_BYTES,
    CREDIT_BYTES,
    Key,
    Kind,
    Message,
    Op,
    Spec,
    about,
    decode,
)
from zoonet.errors import GroupFailed, ProtocolViolation, ZoonetError
from zoonet.transport import Buffer, StreamLanes

torch.set_num_threads(1)

MEMBER, STRANGER = identity_of("member").peer_id, identity_of("stranger").peer_id
GROUP = b"g" * 16
SIZE = 2 * CHUNK_BYTES + 100
KEY, SPEC = Key(GROUP, 1, 0, 0, 0), Spec(Op.POINT_TO_POINT, 0, SIZE, (SIZE,))
OTHER = KEY._replace(number=1)


class Desk:
    """A mailbox with one receive that waits, and one send."""

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.settled: list[ZoonetError | None] = []
        self.memory = bytearray(b"." * SIZE)
        self.mailbox = Mailbox([MEMBER], self.post, lambda *_: None, lambda *_: None)
        self.mailbox.open_group(GROUP, lambda: None)
        self.mailbox.receive(MEMBER, KEY, SPEC, memoryview(self.memory), self.settled.append)
        self.mailbox.send(MEMBER, OTHER, SPEC, memoryview(bytes(SIZE)), self.settled.append)

    def post(self, peer_id: PeerId, header: bytes, payload: Buffer) -> None:
        self.posted.append(decode(peer_id, header))

    def hear(self, header: bytes, payload: bytes = b"", peer_id: PeerId = MEMBER) -> None:
        """A message comes over a lane."""
        self.mailbox.admit(peer_id, header, len(payload))[:] = payload
        self.mailbox.arrived(peer_id, header)


CHUNK = b"x" * CHUNK_BYTES


@pytest.mark.parametrize(
    ("header", "payload", "message"),
    [
        (b"", b"", "malformed"),
        (b"\xff" * 100, b"", "malformed"),
        (b"\x91" * 900, b"", "malformed"),
        (Message(Kind.HELLO, note="x" * 999).encode(), b"", "malformed"),
        (about(Kind.WANT, KEY, SPEC), b"payload", "WANT with a payload"),
        (about(Kind.DATA, KEY, SPEC), CHUNK[1:], "1048575 bytes at 0"),
        (about(Kind.DATA, KEY, SPEC, 1), CHUNK, "bytes at 1 of"),
        (about(Kind.DATA, KEY, SPEC, 3 * CHUNK_BYTES), CHUNK, "bytes at 3145728 of"),
        (about(Kind.DATA, KEY, SPEC._replace(num_bytes=1 << 61)), CHUNK, "was asked for"),
        (about(Kind.DATA, KEY, SPEC._replace(dtype=7)), CHUNK, "was asked for"),
        (about(Kind.DATA, OTHER, SPEC), CHUNK, "not asked for"),
        (about(Kind.DATA, KEY._replace(group=b"other"), SPEC), CHUNK, "not asked for"),
        (about(Kind.DONE, OTHER, SPEC), b"", "received what nobody sent"),
        (about(Kind.DONE, KEY, SPEC), b"", "received what nobody sent"),
        (about(Kind.TAKEN, KEY, SPEC), b"", "taken what nobody sent"),
        (about(Kind.EARLY, OTHER, SPEC), CHUNK, "unasked, of 2097252"),
        (about(Kind.EARLY, OTHER, SPEC._replace(num_bytes=0)), b"", "0 bytes unasked"),
    ],
    ids=range(17),
)
def test_a_message_that_is_none_is_refused(header: bytes, payload: bytes, message: str) -> None:
    desk = Desk()
    with pytest.raises(ProtocolViolation, match=message) as caught:
        desk.hear(header, payload)
    assert caught.value.peer == MEMBER
    assert desk.memory == b"." * SIZE
    assert desk.settled == []


@given(st.binary(max_size=300))
def test_no_header_is_too_strange(header: bytes) -> None:
    desk = Desk()
    with contextlib.suppress(ProtocolViolation):
        desk.hear(header)
    assert desk.memory == b"." * SIZE


def test_a_stranger_is_refused_whatever_it_says() -> None:
    desk = Desk()
    for kind in Kind:
        with pytest.raises(ProtocolViolation, match="no member") as caught:
            desk.mailbox.admit(STRANGER, about(kind, KEY, SPEC), CHUNK_BYTES)
        assert caught.value.peer == STRANGER


def test_a_chunk_comes_once_and_all_of_them_make_the_tensor() -> None:
    desk = Desk()
    desk.hear(about(Kind.DATA, KEY, SPEC, CHUNK_BYTES), CHUNK)
    with pytest.raises(ProtocolViolation, match="twice"):
        desk.hear(about(Kind.DATA, KEY, SPEC, CHUNK_BYTES), CHUNK)
    desk.hear(about(Kind.DATA, KEY, SPEC, 2 * CHUNK_BYTES), b"x" * 100)
    assert desk.settled == []
    desk.hear(about(Kind.DATA, KEY, SPEC, 0), CHUNK)
    assert desk.settled == [None]
    assert desk.memory == b"x" * SIZE
    assert desk.posted[-1].kind == Kind.DONE


def test_notes_and_what_comes_early_are_bounded() -> None:
    desk = Desk()
    for number in range(MAX_NOTES):
        desk.hear(about(Kind.OFFER, KEY._replace(number=number, tag=1), SPEC))
    with pytest.raises(ProtocolViolation, match="more than 16384 transfers"):
        desk.hear(about(Kind.OFFER, KEY._replace(tag=2), SPEC))
    early = SPEC._replace(num_bytes=CHUNK_BYTES)
    for number in range(CREDIT_BYTES // CHUNK_BYTES):
        desk.hear(about(Kind.EARLY, KEY._replace(number=number, tag=3), early), CHUNK)
    with pytest.raises(ProtocolViolation, match="more unasked than it has credit for"):
        desk.hear(about(Kind.EARLY, KEY._replace(tag=4), early), CHUNK)
    with pytest.raises(ProtocolViolation, match="same tensor twice"):
        desk.hear(about(Kind.EARLY, KEY._replace(tag=3), early), CHUNK)


def test_what_lies_aside_when_its_group_ends_gives_its_credit_back() -> None:
    desk = Desk()
    key, early = KEY._replace(tag=3), SPEC._replace(num_bytes=5)
    desk.hear(about(Kind.EARLY, key, early), b"early")
    desk.mailbox.close_group(GROUP, ProtocolViolation(MEMBER, "over"))
    assert [message.key for message in desk.posted if message.kind == Kind.TAKEN] == [key]
    desk.hear(about(Kind.EARLY, KEY._replace(tag=4), early), b"later")
    assert [message.kind for message in desk.posted].count(Kind.TAKEN) == 2
    desk.hear(about(Kind.DATA, KEY, SPEC), CHUNK)  # was under way, lands nowhere
    assert desk.memory == b"." * SIZE
    assert [type(settled) for settled in desk.settled] == [ProtocolViolation] * 2


def test_the_lane_of_a_stranger_ends_and_the_group_goes_on() -> None:
    world = MemoryWorld()

    async def story(group: Group) -> None:
        exchange = group._exchange
        if group.rank == 0:
            transport, _ = world.swarm.peer(identity_of("stranger"))
            lanes, victim = StreamLanes(transport), exchange.peers[1]
            lane = await lanes.open(victim, exchange._channel, lambda *_: None)
            lane.post(Message(Kind.BYE).encode(), b"")
            await asyncio.sleep(1)
            assert "no member" in str(world.swarm.transports[victim].failures)
            await lane.close()
        mine = torch.ones(10)
        await group.all_reduce_(mine)
        assert mine[0] == group.size

    world.run(3, story)


def test_a_member_that_breaks_the_protocol_is_named_to_all_and_the_group_ends() -> None:
    async def story(group: Group) -> str:
        exchange = group._exchange
        if group.rank == 0:
            exchange.post(exchange.peers[1], about(Kind.DONE, OTHER, SPEC), b"")
            await asyncio.sleep(1)
        with pytest.raises(GroupFailed) as caught:
            await group.barrier()
        return str(caught.value)

    told = MemoryWorld().run(3, story)
    assert all("has received what nobody sent" in text for text in told)
    assert all("rank 0" in text and "broke the protocol" in text for text in told[1:])
