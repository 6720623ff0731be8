"""Jobs on the record store, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import pytest

from tests.jobs.stories import ALICE, BOB, CAROL, DAVE, OTHER_CID, prepared, progress, result
from zoonet.blocks import cid_of
from zoonet.config import encode
from zoonet.crypto import Identity
from zoonet.errors import ConfigError, InvalidRecord
from zoonet.jobs import Catalog, JobView
from zoonet.records import JobRecord, job_topic, sign, verify
from zoonet.testing import MemoryRecordStore, MemorySwarm, run


def join(swarm: MemorySwarm, identity: Identity) -> tuple[Catalog, MemoryRecordStore]:
    _, records = swarm.peer(identity)
    return Catalog(identity, records, swarm.clock), records


def test_a_published_job_is_discovered_by_others() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        bob, _ = join(swarm, BOB)
        first = await alice.publish(prepared(1), budget_max=99.5)
        second = await alice.publish(prepared(2))
        assert first.body.job_id != second.body.job_id
        assert [job.raw for job in await bob.discover()] == [first.raw, second.raw]
        assert first.body.budget_max == 99
        view = await bob.view(first.body.job_id)
        assert (view.phase, view.submitter, view.total_tokens) == ("open", ALICE.peer_id, 1000)
        assert "no peer has taken it yet" in view.note

    run(story())


def test_a_new_job_is_heard_on_the_topic() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        _, ears = join(swarm, BOB)
        async with ears.listen("jobs") as events:
            record = await alice.publish(prepared())
            assert (await anext(events)).raw == record.raw

    run(story())


def test_an_unknown_job_says_how_to_list_the_known_ones() -> None:
    async def story() -> None:
        alice, _ = join(MemorySwarm(), ALICE)
        with pytest.raises(ConfigError, match=r"no job 0{32} was found; list the open ones with"):
            await alice.view("0" * 32)

    run(story())


def test_a_cancelled_job_is_gone_from_the_list_but_still_viewed() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        bob, _ = join(swarm, BOB)
        job_id = (await alice.publish(prepared())).body.job_id
        await alice.cancel(job_id)
        assert await bob.discover() == []
        assert (await bob.view(job_id)).phase == "cancelled"
        with pytest.raises(ConfigError, match="the job is cancelled: it cannot be cancelled any"):
            await alice.cancel(job_id)

    run(story())


def test_only_its_submitter_cancels_a_job() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        bob, _ = join(swarm, BOB)
        job_id = (await alice.publish(prepared())).body.job_id
        with pytest.raises(ConfigError, match=f"submitted by {ALICE.peer_id}: only its key"):
            await bob.cancel(job_id)

    run(story())


def test_another_peer_cannot_sign_a_cancellation() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        job = await alice.publish(prepared())
        forged = msgspec.structs.replace(job.body, is_cancelled=True)
        now = swarm.clock.now()
        raw = sign(BOB, forged, sequence=1 << 50, expires_at=now + 60).raw
        with pytest.raises(InvalidRecord, match="not that of this submitter"):
            verify(raw, now=now)

    run(story())


def test_a_submitter_that_restarted_keeps_its_older_jobs_listed() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        before, _ = join(swarm, ALICE)
        old = await before.publish(prepared(1))
        await asyncio.sleep(1)
        after, _ = join(swarm, ALICE)
        new = await after.publish(prepared(2))
        await after.cancel(new.body.job_id)
        assert [job.raw for job in await after.discover()] == [old.raw]

    run(story())


def test_records_that_the_network_lost_come_back_from_anyone_who_saw_them() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        bob, _ = join(swarm, BOB)
        carol, _ = join(swarm, CAROL)
        job = await alice.publish(prepared())
        await bob.discover()
        swarm.records.clear()
        assert await carol.discover() == []
        await bob.refresh([job.body.job_id])
        assert [found.raw for found in await carol.discover()] == [job.raw]

    run(story())


def test_a_job_expires_with_its_record() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        await alice.publish(prepared(), lifetime_s=100.0)
        await asyncio.sleep(101.0)
        assert await alice.discover() == []

    run(story())


def test_a_list_full_of_open_jobs_refuses_one_more() -> None:
    async def story() -> None:
        alice, _ = join(MemorySwarm(), ALICE)
        for nonce in range(128):
            await alice.publish(prepared(nonce))
        with pytest.raises(ConfigError, match=r"this key has 128 open jobs.*zoonet cancel"):
            await alice.publish(prepared(128))

    run(story())


def test_following_a_job_sees_it_taken_trained_and_finished() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        _, bobs = join(swarm, BOB)
        _, carols = join(swarm, CAROL)
        job_id = (await alice.publish(prepared())).body.job_id
        seen: list[JobView] = []

        async def watch() -> None:
            async for view in alice.follow(job_id, interval_s=30.0):
                seen.append(view)

        async def train() -> None:
            now = swarm.clock.now
            await asyncio.sleep(1)
            await bobs.announce(job_topic(job_id), progress(BOB, job_id, now=now()))
            await asyncio.sleep(1)
            said = {"num_rounds": 2, "num_tokens": 400, "eval_loss": 2.0, "eval_round": 2}
            await carols.publish(progress(CAROL, job_id, now=now(), tokens_per_s=7.0, **said))
            await bobs.announce(
                job_topic(job_id), progress(BOB, job_id, now=now(), sequence=2, **said)
            )
            await asyncio.sleep(31)
            await bobs.publish(result(BOB, job_id, now=now()))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            tasks.create_task(train())
        assert [view.phase for view in seen] == ["open", *["training"] * 3, "finished"]
        assert "1 of the 2 peers" in seen[1].note
        assert seen[2].eval_losses == ((2, 2.0),)
        assert seen[3].tokens_per_s == 7.0
        assert seen[-1].eval_losses == ((2, 2.0), (5, 1.5))
        assert seen[-1].num_tokens == 1000
        assert seen[-1].result is not None
        assert seen[-1].result.holders == (BOB.peer_id,)

    run(story())


def test_a_follower_may_leave_early() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        job_id = (await alice.publish(prepared())).body.job_id
        async with aclosing(alice.follow(job_id)) as views:
            async for view in views:
                assert view.phase == "open"
                break
        assert swarm.listeners[job_topic(job_id)] == []

    run(story())


def test_the_model_that_most_participants_name_is_the_result() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        job_id = (await alice.publish(prepared())).body.job_id
        for identity, cid in ((BOB, OTHER_CID), (CAROL, OTHER_CID), (DAVE, "bafkrei" + "a" * 52)):
            _, records = join(swarm, identity)
            named = result(identity, job_id, now=swarm.clock.now(), model_cid=cid)
            await records.publish(named)
        elected = (await alice.view(job_id)).result
        assert elected is not None
        assert elected.model_cid == OTHER_CID
        assert set(elected.holders) == {BOB.peer_id, CAROL.peer_id}

    run(story())


def test_a_job_fails_only_when_every_participant_gave_up() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        alice, _ = join(swarm, ALICE)
        job_id = (await alice.publish(prepared())).body.job_id
        now = swarm.clock.now()
        _, bobs = join(swarm, BOB)
        _, carols = join(swarm, CAROL)
        await bobs.publish(progress(BOB, job_id, now=now, phase="failed", note="the loss is NaN"))
        await carols.publish(progress(CAROL, job_id, now=now))
        assert (await alice.view(job_id)).phase == "training"
        await carols.publish(progress(CAROL, job_id, now=now, sequence=2, phase="failed"))
        view = await alice.view(job_id)
        assert view.phase == "failed"
        assert "gave up: the loss is NaN" in view.note

    run(story())


def test_the_spec_is_named_by_the_cid_of_its_bytes() -> None:
    async def story() -> None:
        alice, _ = join(MemorySwarm(), ALICE)
        job = await alice.publish(prepared())
        assert job.expect(JobRecord).body.spec_cid == cid_of(encode(prepared()))

    run(story())
