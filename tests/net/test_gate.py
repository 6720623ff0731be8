"""What a gate remembers of the records that came through it."""

from __future__ import annotations

import pytest

from tests.contracts.networks import ManualClock, identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.errors import InvalidRecord
from zoonet.net.gate import Gate


def test_verified_records_are_remembered_up_to_so_many_bytes() -> None:
    size = len(peer_record(identity_of("peer 100")).raw)
    gate = Gate(ManualClock(), max_remembered_bytes=10 * size)
    for number in range(100, 150):
        gate.admit(peer_record(identity_of(f"peer {number}")).raw)
        assert gate.remembered_bytes <= 10 * size
    assert gate.remembered_bytes > 8 * size


def test_of_what_a_peer_says_again_and_again_only_its_newest_word_is_remembered() -> None:
    """Peers say where they are several times a round: each word of theirs is a new record."""
    gate, eve = Gate(ManualClock()), identity_of("eve")
    for sequence in range(100, 150):
        newest = peer_record(eve, sequence=sequence)
        record = gate.admit(newest.raw)
        assert gate.remembered_bytes == len(newest.raw)
    assert gate.admit(bytes(bytearray(newest.raw))) is record


def test_an_older_word_and_another_of_the_same_number_do_not_displace_the_newest() -> None:
    gate, eve = Gate(ManualClock()), identity_of("eve")
    newest = peer_record(eve, sequence=5)
    record = gate.admit(newest.raw)
    for refused in (peer_record(eve, sequence=4), peer_record(eve, sequence=5, name="two faces")):
        with pytest.raises(InvalidRecord):
            gate.admit(refused.raw)
    assert gate.remembered_bytes == len(newest.raw)
    assert gate.admit(bytes(bytearray(newest.raw))) is record


def test_a_record_that_is_remembered_is_the_same_object_again_and_counts_once() -> None:
    gate = Gate(ManualClock())
    record = peer_record(identity_of("eve"))
    assert gate.admit(record.raw) is gate.admit(bytes(bytearray(record.raw)))
    assert gate.remembered_bytes == len(record.raw)
