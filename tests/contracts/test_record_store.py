"""What every RecordStore promises, on the twin and on real daemons."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from tests.contracts.networks import START, Network, Peer, identity_of
from zoonet.crypto import Identity
from zoonet.records import (
    JOBS_KEY,
    Hardware,
    JobList,
    PeerRecord,
    Signed,
    sign,
)

TOPIC = "peers"


def peer_record(
    identity: Identity, *, sequence: int = 1, lifetime_s: float = 60.0, name: str = ""
) -> Signed[PeerRecord]:
    """A peer's record that begins at the clock's start."""
    body = PeerRecord(
        peer_id=identity.peer_id,
        name=name,
        roles=("worker",),
        addresses=(),
        hardware=Hardware(num_cpus=2, memory_bytes=8),
        version="1",
        started_at=START,
    )
    return sign(identity, body, sequence=sequence, expires_at=START + lifetime_s)


def job_list(identity: Identity, *, sequence: int = 1) -> Signed[JobList]:
    """A submitter's list of one job; all submitters' lists share a key."""
    body = JobList(job_ids=("0" * 32,))
    return sign(identity, body, sequence=sequence, expires_at=START + 60)


def names(records: list[Signed[Any]]) -> list[str]:
    return [record.body.name for record in records]


def test_every_peer_finds_what_one_published(network: Network) -> None:
    async def story(_: Network, *peers: Peer) -> None:
        record = peer_record(peers[0].identity)
        await peers[0].records.publish(record)
        for peer in peers:
            found = await peer.records.fetch(record.key, PeerRecord)
            assert [one.raw for one in found] == [record.raw]

    network.run(story, 3)


def test_records_of_many_authors_stand_under_one_key_in_author_order(network: Network) -> None:
    async def story(_: Network, *peers: Peer) -> None:
        for peer in peers:
            await peer.records.publish(job_list(peer.identity))
        found = await peers[1].records.fetch(JOBS_KEY, JobList)
        assert [one.author for one in found] == sorted(peer.peer_id for peer in peers)

    network.run(story, 3)


def test_a_newer_record_replaces_an_older_one_and_never_the_reverse(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        key = peer_record(left.identity).key
        # The newer one ends earlier: what counts is the sequence alone.
        await left.records.publish(peer_record(left.identity, name="old", lifetime_s=90))
        await left.records.publish(
            peer_record(left.identity, sequence=2, name="new", lifetime_s=50)
        )
        assert names(await right.records.fetch(key, PeerRecord)) == ["new"]
        await left.records.publish(peer_record(left.identity, name="old", lifetime_s=90))
        assert names(await right.records.fetch(key, PeerRecord)) == ["new"]
        assert names(await left.records.fetch(key, PeerRecord)) == ["new"]

    network.run(story, 2)


def test_an_expired_record_is_gone(network: Network) -> None:
    async def story(network: Network, left: Peer, right: Peer) -> None:
        record = peer_record(left.identity, lifetime_s=60)
        await left.records.publish(record)
        network.clock.time = START + 59.9
        assert len(await right.records.fetch(record.key, PeerRecord)) == 1
        network.clock.time = START + 60.1
        assert await right.records.fetch(record.key, PeerRecord) == []
        assert await left.records.fetch(record.key, PeerRecord) == []

    network.run(story, 2)


def test_only_records_of_the_type_asked_for_are_returned(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await left.records.publish(job_list(left.identity))
        assert await right.records.fetch(JOBS_KEY, PeerRecord) == []
        assert len(await right.records.fetch(JOBS_KEY, JobList)) == 1
        assert await right.records.fetch("no-such-key", JobList) == []

    network.run(story, 2)


def test_an_announcement_reaches_everyone_who_listens_and_nobody_else(network: Network) -> None:
    async def story(network: Network, left: Peer, middle: Peer, right: Peer) -> None:
        async with (
            middle.records.listen(TOPIC) as in_the_middle,
            right.records.listen(TOPIC) as on_the_right,
            right.records.listen("another-topic") as elsewhere,
        ):
            await network.listeners(left, TOPIC, 2)
            deaf = asyncio.ensure_future(anext(elsewhere))
            for sequence in (1, 2, 3):
                await left.records.announce(TOPIC, peer_record(left.identity, sequence=sequence))
                for heard in (in_the_middle, on_the_right):
                    assert (await anext(heard)).sequence == sequence
            assert not deaf.done()
            deaf.cancel()
            await asyncio.wait([deaf])

    network.run(story, 3)


def test_a_slow_listener_still_hears_what_comes_later(network: Network) -> None:
    async def story(network: Network, left: Peer, right: Peer) -> None:
        async with right.records.listen(TOPIC) as announcements:
            await network.listeners(left, TOPIC, 1)
            for sequence in range(1, 401):
                await left.records.announce(TOPIC, peer_record(left.identity, sequence=sequence))
            heard = 0
            for sequence in itertools.count(401):
                await left.records.announce(TOPIC, peer_record(left.identity, sequence=sequence))
                heard = (await anext(announcements)).sequence
                if heard > 400:
                    break

    network.run(story, 2)


def forged(record: Signed[Any]) -> bytes:
    """The record with one bit of its signature turned."""
    return record.raw[:-20] + bytes([record.raw[-20] ^ 1]) + record.raw[-19:]


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("forged", forged),
        ("malformed", lambda record: b"not a record at all"),
        ("malformed", lambda record: record.raw + b"\x00"),
        ("malformed", lambda record: record.raw.replace(b"peer/1", b"\xffeer/1")),
        ("oversized", lambda record: record.raw + bytes(70_000)),
        ("expired", lambda record: peer_record(identity_of("eve"), lifetime_s=-1).raw),
        ("long-lived", lambda record: peer_record(identity_of("eve"), lifetime_s=9999).raw),
        ("unknown-kind", lambda record: record.raw.replace(b"peer/1", b"peer/9")),
    ],
)
def test_what_cannot_be_believed_is_refused_and_counted(
    network: Network, reason: str, damage: Any
) -> None:
    async def story(network: Network, victim: Peer, other: Peer) -> None:
        eve = identity_of("eve")
        record = peer_record(eve)
        await network.plant(victim, record.key, eve.peer_id, damage(record), record.expires_at)
        assert await victim.records.fetch(record.key, PeerRecord) == []
        assert victim.records.refusals == {reason: 1}

    network.run(story, 2)


def test_a_record_under_another_author_is_refused_and_counted(network: Network) -> None:
    async def story(network: Network, victim: Peer, other: Peer) -> None:
        record = peer_record(identity_of("eve"))
        await network.plant(victim, record.key, other.peer_id, record.raw, record.expires_at)
        assert await victim.records.fetch(record.key, PeerRecord) == []
        assert victim.records.refusals == {"misplaced": 1}

    network.run(story, 2)


def test_a_replay_of_an_old_record_does_not_displace_the_new_one(network: Network) -> None:
    async def story(network: Network, victim: Peer, other: Peer) -> None:
        old = peer_record(other.identity, sequence=1, name="old", lifetime_s=50)
        new = peer_record(other.identity, sequence=2, name="new", lifetime_s=90)
        await other.records.publish(new)
        assert names(await victim.records.fetch(new.key, PeerRecord)) == ["new"]
        await network.plant(victim, new.key, other.peer_id, old.raw, old.expires_at)
        assert "old" not in names(await victim.records.fetch(new.key, PeerRecord))
        assert victim.records.refusals == {"replayed": 1}

    network.run(story, 2)


def test_two_records_with_one_sequence_number_are_an_equivocation(network: Network) -> None:
    async def story(network: Network, victim: Peer, other: Peer) -> None:
        first = peer_record(other.identity, name="first")
        second = peer_record(other.identity, name="second")
        await other.records.publish(first)
        assert names(await victim.records.fetch(first.key, PeerRecord)) == ["first"]
        await network.plant(victim, first.key, other.peer_id, second.raw, second.expires_at)
        assert "second" not in names(await victim.records.fetch(first.key, PeerRecord))
        assert victim.records.refusals == {"equivocation": 1}

    network.run(story, 2)


def test_an_announced_replay_is_refused_and_the_rest_is_heard(network: Network) -> None:
    async def story(network: Network, left: Peer, right: Peer) -> None:
        async with right.records.listen(TOPIC) as announcements:
            await network.listeners(left, TOPIC, 1)
            await left.records.announce(TOPIC, peer_record(left.identity, sequence=7))
            assert (await anext(announcements)).sequence == 7
            await left.records.announce(TOPIC, peer_record(left.identity, sequence=6))
            # Topics keep no order, so the refusal is waited for before the next one is sent.
            hearing = asyncio.ensure_future(anext(announcements))
            while not right.records.refusals:
                await asyncio.wait([hearing], timeout=0.05)
            await left.records.announce(TOPIC, peer_record(left.identity, sequence=8))
            assert (await hearing).sequence == 8
            assert right.records.refusals == {"replayed": 1}

    network.run(story, 2)
