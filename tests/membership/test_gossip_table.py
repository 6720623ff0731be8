"""What a table believes, and what it refuses."""

from __future__ import annotations

import pytest

from tests.contracts.networks import START, identity_of
from tests.membership.gossip_makers import HOUR_S, gone, job, member, people, table_of
from zoonet.crypto import Identity
from zoonet.errors import ConfigError
from zoonet.membership.gossip import GossipConfig, Table, TableLimits, member_key

NOW = START


def filled(num: int = 12) -> tuple[Table, list[Identity]]:
    everyone = people(num)
    table = table_of(everyone[0])
    for identity in everyone:
        assert table.add(member(identity), NOW)
    return table, everyone


def jurors(table: Table, accused: Identity, everyone: list[Identity]) -> list[Identity]:
    """The accused's successors on the ring, the nearest first."""
    by_id = {identity.peer_id: identity for identity in everyone}
    subject = table.member(accused.peer_id)
    assert subject is not None
    order = [item.author for item in table._entries.after(subject.position)]
    return [by_id[author] for author in order if author != accused.peer_id]


def test_the_newest_record_of_a_slot_stands_and_older_ones_are_refused() -> None:
    table = table_of(identity_of("me"))
    alice = identity_of("alice")
    newer = member(alice, sequence=7)
    assert table.add(newer, NOW)
    assert not table.add(newer, NOW), "the same bytes again are no news"
    assert not table.add(member(alice, sequence=6), NOW)
    assert table.refusals == {"replayed": 1}
    assert table.member(alice.peer_id) is newer
    newest = member(alice, sequence=8)
    assert table.add(newest, NOW)
    assert table.find(member_key(alice.peer_id)) == [newest]
    assert table.num_members == len(table) == 1


def test_of_two_records_with_one_number_every_table_keeps_the_same() -> None:
    alice = identity_of("alice")
    one, other = member(alice, name="one"), member(alice, name="other")
    tables = [table_of(identity_of("left")), table_of(identity_of("right"))]
    for table, order in zip(tables, ((one, other), (other, one)), strict=True):
        for item in order:
            table.add(item, NOW)
    assert tables[0].member(alice.peer_id) is tables[1].member(alice.peer_id)
    assert tables[0].sums() == tables[1].sums()
    assert sum(table.refusals["equivocation"] for table in tables) == 1


def test_what_has_run_out_is_refused_and_forgotten() -> None:
    table = table_of(identity_of("me"))
    alice = identity_of("alice")
    assert not table.add(member(alice, expires_at=NOW - 1), NOW)
    assert table.add(member(alice, sequence=2, expires_at=NOW + 10), NOW)
    table.expire(NOW + 11)
    assert len(table) == 0
    assert not any(table.sums())


def test_a_refused_record_is_not_asked_for_again() -> None:
    table = table_of(identity_of("me"))
    alice = identity_of("alice")
    table.add(member(alice, sequence=2), NOW)
    old = member(alice, sequence=1)
    assert table.lacks(old.id)
    table.add(old, NOW)
    assert not table.lacks(old.id)


def test_a_goodbye_takes_a_peer_off_at_once_and_keeps_it_off() -> None:
    table, everyone = filled()
    bob = everyone[3]
    known = table.member(bob.peer_id)
    assert known is not None
    assert table.add(gone(bob, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is None
    assert not table.lost, "it said goodbye: nobody needs to look for it"
    assert not table.add(known, NOW), "a laggard brings the old record back"
    assert table.refusals["gone"] == 1
    assert table.add(member(bob, sequence=2), NOW), "it has come back itself"


def test_one_accuser_is_not_enough_and_two_near_ones_are() -> None:
    table, everyone = filled()
    bob = everyone[3]
    first, second, *_ = [i for i in jurors(table, bob, everyone) if i is not everyone[0]]
    table.add(gone(first, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is not None
    table.add(gone(second, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is None
    assert [item.author for item in table.lost] == [bob.peer_id]


def test_accusers_from_afar_count_for_nothing() -> None:
    table, everyone = filled(30)
    bob = everyone[3]
    for stranger in jurors(table, bob, everyone)[8:]:
        table.add(gone(stranger, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is not None


def test_the_accuseds_own_word_beats_every_accusation() -> None:
    table, everyone = filled()
    bob = everyone[3]
    for accuser in jurors(table, bob, everyone)[:3]:
        table.add(gone(accuser, bob.peer_id), NOW)
    assert table.add(member(bob, sequence=2), NOW)
    late = gone(jurors(table, bob, everyone)[4], bob.peer_id)
    assert not table.add(late, NOW), "an accusation of the older record is settled"
    assert table.member(bob.peer_id) is not None
    assert len(table) == len(everyone), "the old accusations are forgotten"


def test_a_peer_never_believes_that_it_is_gone_itself() -> None:
    table, everyone = filled()
    me = everyone[0]
    for accuser in jurors(table, me, everyone)[:4]:
        table.add(gone(accuser, me.peer_id), NOW)
    assert table.member(me.peer_id) is not None


def test_in_a_swarm_of_three_one_witness_is_enough() -> None:
    table, (_, bob, carol) = filled(3)
    table.add(gone(carol, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is None


def test_one_author_fills_its_own_share_only() -> None:
    limits = TableLimits(max_author_bytes=16 * 1024, max_accusation_bytes=1024)
    table = table_of(identity_of("me"), GossipConfig(limits=limits))
    loud = identity_of("loud")
    for number in range(200):
        table.add(job(loud, number), NOW)
        table.add(gone(loud, people(200)[number].peer_id), NOW)
    assert table.num_bytes <= 17 * 1024
    assert table.refusals["excess"] > 300
    assert table.add(job(identity_of("quiet")), NOW)


def test_a_full_table_keeps_a_sample_of_all_authors_and_its_own_record() -> None:
    limits = TableLimits(max_records=512)
    me = identity_of("me")
    table = table_of(me, GossipConfig(limits=limits))
    table.add(member(me), NOW)
    early = people(500)
    late = [identity_of(f"late {number}") for number in range(700)]
    for identity in (*early, *late):
        table.add(member(identity), NOW)
    assert len(table) == 512
    assert table.member(me.peer_id) is not None
    kept_late = sum(table.member(identity.peer_id) is not None for identity in late)
    assert 200 < kept_late < 400, "neither the first nor the last to come are preferred"


def test_jobs_are_found_by_key_and_a_cancelled_one_replaces_the_open_one() -> None:
    table = table_of(identity_of("me"))
    alice = identity_of("alice")
    first = job(alice)
    table.add(first, NOW)
    assert table.find(first.key) == [first]
    cancelled = job(alice, sequence=2, is_cancelled=True)
    table.add(cancelled, NOW)
    assert table.find(first.key) == table.jobs() == [cancelled]


def test_equal_tables_have_equal_sums_however_they_came_about() -> None:
    left, right = table_of(identity_of("left")), table_of(identity_of("right"))
    everyone = people(40)
    for identity in everyone:
        left.add(member(identity, sequence=1), NOW)
        left.add(member(identity, sequence=2), NOW)
    assert left.differing(right.sums()) == sorted({i.id >> 56 for i in left.members()})
    for identity in reversed(everyone):
        right.add(member(identity, sequence=2), NOW)
    assert left.differing(right.sums()) == []
    right.add(job(everyone[0]), NOW)
    assert len(left.differing(right.sums())) == 1


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in (
        {"tick_s": 0.0},
        {"lifetime_s": 100 * HOUR_S},
        {"renew_fraction": 1.0},
        {"quorum": 9},
        {"num_watched": 0},
    ):
        with pytest.raises(ConfigError):
            GossipConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        TableLimits(max_author_bytes=1)


def test_a_suspect_is_judged_again_when_its_accusers_become_known() -> None:
    everyone = people(12)
    whole, _ = filled()
    bob = everyone[3]
    accusers = [i for i in jurors(whole, bob, everyone) if i is not everyone[0]][:2]
    table = table_of(everyone[0])
    for identity in everyone:
        if identity not in accusers:
            table.add(member(identity), NOW)
    for accuser in accusers:
        table.add(gone(accuser, bob.peer_id), NOW)
    assert table.member(bob.peer_id) is not None, "strangers accuse it"
    for accuser in accusers:
        table.add(member(accuser), NOW)
    table.expire(NOW)
    assert table.member(bob.peer_id) is None
