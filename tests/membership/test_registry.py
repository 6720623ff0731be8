"""Registrys over the in-memory twin, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.contracts.networks import identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.clock import LoopClock
from zoonet.crypto import Identity
from zoonet.errors import ProtocolViolation
from zoonet.membership import Directory
from zoonet.membership.gossip import Ask, Gone, Registry, RegistryRecords
from zoonet.membership.gossip.item import subject_of
from zoonet.membership.gossip.messages import PROTOCOL, AskWire, ToldWire, to_wire
from zoonet.records import (
    JOBS_KEY,
    PEERS_TOPIC,
    JobList,
    JobRecord,
    PeerRecord,
    job_key,
    sign,
)
from zoonet.testing import MemoryRecordStore, MemorySwarm, MemoryTransport, run
from zoonet.transport import Refused, call


@dataclass
class Member:
    identity: Identity
    transport: MemoryTransport
    records: MemoryRecordStore
    registry: Registry
    task: asyncio.Task[None]

    @property
    def knows(self) -> set[str]:
        return {record.author for record in self.registry.peers()}


@asynccontextmanager
async def member(
    swarm: MemorySwarm, name: str, *contacts: Member, watches: bool = False
) -> AsyncIterator[Member]:
    identity = identity_of(name)
    transport, records = swarm.peer(identity)

    async def describe() -> PeerRecord:
        return peer_record(identity).body

    registry = Registry(
        identity, transport, swarm.clock, describe=None if watches else describe, seed=1
    )
    for contact in contacts:
        registry.meet(contact.identity.peer_id)
    task = asyncio.create_task(registry.run())
    try:
        yield Member(identity, transport, records, registry, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()
        await transport.close()


@asynccontextmanager
async def members(swarm: MemorySwarm, num: int) -> AsyncIterator[list[Member]]:
    """So many peers, each of which entered through the first."""
    async with AsyncExitStack() as stack:
        found: list[Member] = []
        for number in range(num):
            one = await stack.enter_async_context(member(swarm, f"peer {number}", *found[:1]))
            found.append(one)
            await asyncio.sleep(0.2)
        yield found


Story = Callable[[MemorySwarm], Awaitable[None]]


def tell(story: Story) -> None:
    async def main() -> None:
        await story(MemorySwarm(clock=LoopClock()))

    run(main())


def test_everyone_knows_everyone_within_a_minute() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 12) as found:
            await asyncio.sleep(60)
            everyone = {one.identity.peer_id for one in found}
            for one in found:
                assert one.knows == everyone - {one.identity.peer_id}
                assert one.registry.is_complete

    tell(story)


@pytest.mark.slow
def test_a_hundred_know_each_other_within_a_minute_and_drop_who_dies() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 100) as found:
            await asyncio.sleep(60)
            assert all(len(one.knows) == 99 for one in found)
            victim = found.pop(50)
            await swarm.kill(victim.identity.peer_id)
            await asyncio.sleep(90)
            assert all(victim.identity.peer_id not in one.knows for one in found)
            assert all(len(one.knows) == 98 for one in found)

    tell(story)


def test_a_job_reaches_all_and_a_newcomer_finds_it_at_once() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 10) as found:
            await asyncio.sleep(60)
            record = sign_job(found[3], swarm)
            found[3].registry.publish(record)
            await asyncio.sleep(20)
            assert all(one.registry.jobs() == [record] for one in found)
            async with member(swarm, "late", *found[:3], watches=True) as late:
                assert await late.registry.complete(1.0)
                assert late.registry.find_here(record.key) == [record]
                await asyncio.sleep(30)
                assert all(late.identity.peer_id not in one.knows for one in found)

    tell(story)


def test_what_is_too_new_for_the_table_is_asked_of_others() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 3) as (alice, bob, carol):
            await asyncio.sleep(60)
            record = sign_job(carol, swarm)
            # Known to two tables, and to be offered by neither.
            from zoonet.membership.gossip import Item

            for one in (bob, carol):
                one.registry.machine.table.add(Item(record), swarm.clock.now())
            assert alice.registry.find_here(record.key) == []
            began = asyncio.get_running_loop().time()
            assert await alice.registry.find(record.key) == [record]
            assert asyncio.get_running_loop().time() - began < 0.1
            assert await alice.registry.find("job/" + "0" * 32) == []

    tell(story)


def test_a_peer_that_leaves_says_goodbye_and_one_that_dies_is_missed() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 8) as found:
            await asyncio.sleep(60)
            async with member(swarm, "guest", *found[:2]) as guest:
                await asyncio.sleep(20)
                assert all(guest.identity.peer_id in one.knows for one in found)
            await asyncio.sleep(20)
            assert all(guest.identity.peer_id not in one.knows for one in found)
            victim = found[5]
            await swarm.kill(victim.identity.peer_id)
            await asyncio.sleep(120)
            others = [one for one in found if one is not victim]
            assert all(victim.identity.peer_id not in one.knows for one in others)
            assert all(len(one.knows) == 6 for one in others)

    tell(story)


def test_a_peer_cut_off_for_a_while_is_back_when_the_cut_is_mended() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 8) as found:
            await asyncio.sleep(60)
            lone, *others = found
            for one in others:
                swarm.faults.cut(lone.identity.peer_id, one.identity.peer_id)
            await asyncio.sleep(150)
            assert all(lone.identity.peer_id not in one.knows for one in others)
            for one in others:
                swarm.faults.heal(lone.identity.peer_id, one.identity.peer_id)
            await asyncio.sleep(180)
            assert all(len(one.knows) == 7 for one in found)

    tell(story)


def test_a_peer_that_is_cut_off_from_all_takes_none_of_them_for_dead() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 8) as found:
            await asyncio.sleep(60)
            lone, *others = found
            for one in others:
                swarm.faults.cut(lone.identity.peer_id, one.identity.peer_id)
            await asyncio.sleep(150)
            assert len(lone.knows) == 7
            assert not any(lone.registry.is_known_gone(one.identity.peer_id) for one in others)
            assert all(len(one.knows) == 6 for one in others)

    tell(story)


def test_a_peer_cut_off_for_an_hour_knows_that_it_knows_nobody_and_comes_back() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 8) as found:
            await asyncio.sleep(60)
            lone, *others = found
            for one in others:
                swarm.faults.cut(lone.identity.peer_id, one.identity.peer_id)
            await asyncio.sleep(3600)
            assert lone.knows == set() and not lone.registry.is_member
            for one in others:
                swarm.faults.heal(lone.identity.peer_id, one.identity.peer_id)
            await asyncio.sleep(60)
            assert lone.registry.is_member
            assert all(len(one.knows) == 7 for one in found)

    tell(story)


def test_two_swarms_that_meet_in_one_pair_become_one() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 5) as left, AsyncExitStack() as stack:
            right: list[Member] = []
            for number in range(5):
                one = await stack.enter_async_context(member(swarm, f"other {number}", *right[:1]))
                right.append(one)
                await asyncio.sleep(0.2)
            await asyncio.sleep(60)
            assert all(len(one.knows) == 4 for one in (*left, *right))
            left[2].registry.meet(right[3].identity.peer_id)
            await asyncio.sleep(90)
            assert all(len(one.knows) == 9 for one in (*left, *right))

    tell(story)


def test_a_forged_record_is_refused_with_its_message_and_a_flood_is_stopped() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 2) as (alice, bob):
            await asyncio.sleep(10)
            forged = bytearray(sign_job(bob, swarm).raw)
            forged[-1] ^= 1
            wire = AskWire(True, b"", b"", b"", (), (bytes(forged),))
            target = alice.identity.peer_id
            with pytest.raises(Refused, match="bad record"):
                await call(bob.transport, target, PROTOCOL, wire, ToldWire, timeout_s=5)
            assert alice.registry.jobs() == []
            assert alice.registry.refusals == 1

            async def flood() -> None:
                for _ in range(200):
                    asked = to_wire(Ask())
                    await call(bob.transport, target, PROTOCOL, asked, ToldWire, timeout_s=5)

            with pytest.raises(Refused, match="too often"):
                await flood()

    tell(story)


def test_liars_cannot_take_a_living_peer_off_for_long() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 6) as found:
            await asyncio.sleep(60)
            victim = found[0]
            own = victim.registry.machine.table.member(victim.identity.peer_id)
            assert own is not None
            for liar in found[1:4]:
                body = Gone(subject=subject_of(own.author), seq=own.record.sequence)
                end = own.expires_at
                lie = sign(liar.identity, body, sequence=1, expires_at=end)
                liar.registry.publish(lie)
            await asyncio.sleep(60)
            assert all(victim.identity.peer_id in one.knows for one in found[1:])

    tell(story)


def test_lists_and_jobs_are_read_from_the_table_and_what_is_missing_from_beneath() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 4) as found:
            await asyncio.sleep(60)
            alice, bob = found[:2]
            stores = [RegistryRecords(one.registry, one.records) for one in found]
            record = sign_job(alice, swarm)
            listing = sign(
                alice.identity,
                JobList(job_ids=(record.body.job_id,)),
                sequence=1,
                expires_at=swarm.clock.now() + 600,
            )
            await stores[0].publish(record)
            await stores[0].publish(listing)
            await asyncio.sleep(20)
            swarm.records.clear()  # the DHT has lost everything
            assert await stores[1].fetch(job_key(record.body.job_id), JobRecord) == [record]
            assert await stores[1].fetch(JOBS_KEY, JobList) == [listing]
            assert bob.registry.is_complete
            old = sign_job(bob, swarm, "beneath")
            await found[2].records.publish(old)
            assert await stores[3].fetch(old.key, JobRecord) == [old]

    tell(story)


def sign_job(author: Member, swarm: MemorySwarm, name: str = "spec"):  # type: ignore[no-untyped-def]
    from tests.membership.gossip_makers import job_record

    number = sum(name.encode())
    body = job_record(author.identity, number).body
    return sign(author.identity, body, sequence=1, expires_at=swarm.clock.now() + 3600)


def test_a_directory_with_a_registry_lists_its_members_and_spares_the_topic() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 4) as found:
            await asyncio.sleep(60)
            alice = found[0]

            async def describe() -> PeerRecord:
                return peer_record(alice.identity).body

            met: list[str] = []
            directory = Directory(
                alice.identity,
                RegistryRecords(alice.registry, alice.records),
                swarm.clock,
                describe=describe,
                on_peer=lambda record: met.append(record.author),
                registry=alice.registry,
            )
            async with alice.records.listen(PEERS_TOPIC) as heard:
                task = asyncio.create_task(directory.run())
                await asyncio.sleep(100)
                assert {r.author for r in directory.peers()} == alice.knows == set(met)
                assert len(alice.knows) == 3
                gone = found[3].identity.peer_id
                await swarm.kill(gone)
                await asyncio.sleep(120)
                assert gone not in {r.author for r in await directory.refresh()}
                # A client has a heartbeat only, and is listed beside the members.
                client = peer_record(identity_of("client"), lifetime_s=3600.0)
                directory.add(client)
                assert client in directory.peers()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1):
                        await anext(heard)
                task.cancel()
                await asyncio.wait([task])

    tell(story)


def test_a_violation_names_who_passed_on_a_bad_record() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with members(swarm, 2) as (alice, bob):
            await asyncio.sleep(5)
            with pytest.raises(ProtocolViolation) as caught:
                await alice.registry._admit([b"\x00" * 50], bob.identity.peer_id)
            assert caught.value.peer == bob.identity.peer_id

    tell(story)
