"""What a peer keeps for others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts.networks import START, ManualClock, identity_of
from tests.contracts.test_record_store import job_list, peer_record
from zoonet.net.shelf import Shelf

KEY = b"k" * 20


def shelf_at(clock: ManualClock, **limits: int) -> Shelf:
    return Shelf(clock.now, **limits)


def test_an_old_record_neither_displaces_a_newer_one_nor_shortens_its_life() -> None:
    clock = ManualClock()
    shelf = shelf_at(clock)
    eve = identity_of("eve")
    assert shelf.put(KEY, peer_record(eve, sequence=2, lifetime_s=90))
    assert not shelf.put(KEY, peer_record(eve, sequence=1, lifetime_s=10))
    clock.time = START + 50
    assert [record.sequence for record in shelf.get(KEY)] == [2]
    clock.time = START + 91
    assert shelf.get(KEY) == []
    assert (len(shelf), shelf.num_bytes) == (0, 0)


def test_a_newer_record_that_ends_earlier_replaces_the_older() -> None:
    clock = ManualClock()
    shelf = shelf_at(clock)
    eve = identity_of("eve")
    shelf.put(KEY, peer_record(eve, sequence=1, lifetime_s=90))
    shelf.put(KEY, peer_record(eve, sequence=2, lifetime_s=10))
    assert [record.sequence for record in shelf.get(KEY)] == [2]
    clock.time = START + 11
    assert shelf.get(KEY) == []


def test_the_same_record_again_is_kept_once() -> None:
    shelf = shelf_at(ManualClock())
    record = peer_record(identity_of("eve"))
    assert shelf.put(KEY, record)
    assert shelf.put(KEY, record)
    assert (len(shelf), shelf.num_bytes) == (1, len(record.raw))


def test_a_full_key_gives_up_what_ends_first_and_refuses_what_would_end_earlier() -> None:
    shelf = shelf_at(ManualClock(), max_records_per_key=2)
    lives = {"a": 30.0, "b": 50.0, "c": 40.0, "d": 10.0}
    kept = [
        shelf.put(KEY, peer_record(identity_of(name), lifetime_s=life))
        for name, life in lives.items()
    ]
    assert kept == [True, True, True, False]
    authors = {record.author for record in shelf.get(KEY)}
    assert authors == {identity_of("b").peer_id, identity_of("c").peer_id}


def test_a_full_shelf_gives_up_what_ends_first_whatever_its_key() -> None:
    record = job_list(identity_of("a"))
    shelf = shelf_at(ManualClock(), max_bytes=int(2.5 * len(record.raw)))
    for number, name in enumerate("abcdef"):
        shelf.put(bytes([number]) * 20, job_list(identity_of(name), sequence=number))
    assert len(shelf) == 2
    assert shelf.num_bytes <= 2.5 * len(record.raw)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(1, 6),
            st.integers(1, 100),
            st.integers(0, 2),
            st.integers(0, 15),
        ),
        max_size=30,
    )
)
def test_counts_and_bytes_agree_with_what_is_kept(
    puts: list[tuple[str, int, int, int, int]],
) -> None:
    clock = ManualClock()
    shelf = shelf_at(clock, max_bytes=1500, max_records_per_key=2)
    for name, sequence, life, key, wait in puts:
        clock.time += wait
        record = peer_record(
            identity_of(name), sequence=sequence, lifetime_s=clock.time - START + life
        )
        shelf.put(bytes([key]) * 20, record)
        kept = [record for key_id in shelf.key_ids() for record in shelf.get(key_id)]
        assert len(shelf) == len(kept)
        assert shelf.num_bytes == sum(len(record.raw) for record in kept) <= 1500
        assert all(record.expires_at > clock.time for record in kept)
