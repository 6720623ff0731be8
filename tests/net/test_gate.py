"""What a gate remembers of the records that came through it."""

from __future__ import annotations

from tests.contracts.networks import ManualClock, identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.net.gate import Gate


def test_verified_records_are_remembered_up_to_so_many_bytes() -> None:
    """Peers say where they are several times a round: each word of theirs is a new record."""
    size = len(peer_record(identity_of("eve"), sequence=100).raw)
    gate = Gate(ManualClock(), max_remembered_bytes=10 * size)
    for sequence in range(100, 150):
        gate.admit(peer_record(identity_of("eve"), sequence=sequence).raw)
        assert gate.remembered_bytes <= 10 * size
    assert gate.remembered_bytes > 8 * size


def test_a_record_that_is_remembered_is_the_same_object_again_and_counts_once() -> None:
    gate = Gate(ManualClock())
    record = peer_record(identity_of("eve"))
    assert gate.admit(record.raw) is gate.admit(bytes(bytearray(record.raw)))
    assert gate.remembered_bytes == len(record.raw)
