"""Reading a relay's answer, and which addresses of our own daemon to ask it at."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.networks import identity_of
from zoonet.errors import ProtocolViolation
from zoonet.net.relay import local_addresses, parse_fields

RELAY = identity_of("relay").peer_id


def test_a_limit_is_read_out_of_a_reservation() -> None:
    limit = b"\x08\x88\x0e\x10\x80\x80\x80\x80\x10"  # duration 1800 s, data 4 GiB
    answer = b"\x08\x02\x22" + bytes([len(limit)]) + limit + b"\x28\x64"  # STATUS, limit, OK
    fields = parse_fields(answer, RELAY)
    assert fields == {1: 2, 4: limit, 5: 100}
    assert parse_fields(limit, RELAY) == {1: 1800, 2: 4 * 1024**3}


@given(st.binary(max_size=100))
def test_any_other_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        parse_fields(raw, RELAY)


@pytest.mark.parametrize("raw", [b"\x08", b"\x08\x80", b"\x0d\x00", b"\x80" * 20])
def test_a_cut_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_fields(raw, RELAY)


def test_a_daemon_is_asked_where_this_machine_reaches_it() -> None:
    routes = ("/ip4/0.0.0.0/tcp/4001", "/ip4/127.0.0.1/tcp/0", "/ip4/192.0.2.1/tcp/4001")
    assert [address.text for address in local_addresses(routes, RELAY)] == [
        f"/ip4/127.0.0.1/tcp/4001/p2p/{RELAY}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}",
    ]
