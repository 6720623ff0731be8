"""Questions and answers of gossip on the wire."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.networks import identity_of
from tests.membership.gossip_makers import member, people
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.membership.gossip import Ask, Item, Told
from zoonet.membership.gossip.entries import NUM_BUCKETS
from zoonet.membership.gossip.messages import (
    MAX_HAVE,
    MAX_NEWS,
    AskWire,
    ToldWire,
    from_wire,
    num_ask_bytes,
    num_told_bytes,
    to_wire,
    told_from_wire,
    told_to_wire,
)

SENDER = PeerId("sender")
IDS = st.lists(st.integers(0, 2**64 - 1), max_size=30).map(tuple)
ITEMS = tuple(member(identity) for identity in people(5))
SUMS = st.none() | st.integers(0, 2**64 - 1).map(lambda n: array("Q", [n] * NUM_BUCKETS))
NEWS = st.sampled_from([(), ITEMS[:1], ITEMS])
KEYS = st.lists(st.text("abc/", max_size=30), max_size=3).map(tuple)


@given(
    ask=st.builds(
        Ask, is_exchange=st.booleans(), have=IDS, sums=SUMS, want=IDS, find=KEYS, news=NEWS
    )
)
def test_a_question_comes_back_from_the_wire_and_its_size_was_known(ask: Ask) -> None:
    raw = msgspec.msgpack.encode(to_wire(ask))
    back = from_wire(msgspec.msgpack.decode(raw, type=AskWire), SENDER, ask.news)
    assert back == ask
    assert abs(len(raw) - num_ask_bytes(ask)) <= 12


@given(
    told=st.builds(
        Told, buckets=st.lists(st.integers(0, 255), max_size=9).map(tuple), ids=IDS, news=NEWS
    )
)
def test_an_answer_comes_back_from_the_wire_and_its_size_was_known(told: Told) -> None:
    raw = msgspec.msgpack.encode(told_to_wire(told))
    back = told_from_wire(msgspec.msgpack.decode(raw, type=ToldWire), SENDER, told.news)
    assert back == told
    assert abs(len(raw) - num_told_bytes(told)) <= 12


def test_what_is_too_long_is_refused_before_it_is_looked_at() -> None:
    record = member(identity_of("alice")).record.raw
    for wrong in (
        to_wire(Ask(have=(1,) * (MAX_HAVE + 1))),
        to_wire(Ask(find=("k",) * 9)),
        to_wire(Ask(find=("k" * 101,))),
        AskWire(True, b"", b"", b"", (), (record,) * (MAX_NEWS + 1)),
        AskWire(True, b"", b"", b"", (), (b"x" * 9000,)),
        AskWire(True, b"", b"1" * 4096, b"", (), ()),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=AskWire)


def test_broken_lists_of_ids_name_their_sender() -> None:
    for wrong in (
        AskWire(True, b"1234567", b"", b"", (), ()),
        AskWire(True, b"", b"12345678", b"", (), ()),
        AskWire(True, b"", b"", b"123", (), ()),
    ):
        with pytest.raises(ProtocolViolation) as caught:
            from_wire(wrong, SENDER, ())
        assert caught.value.peer == SENDER


def test_an_item_knows_its_place() -> None:
    item = Item(member(identity_of("alice")).record)
    again = member(identity_of("alice"), sequence=2)
    assert item.slot == again.slot and item.position == again.position
    assert item.id != again.id
