"""Strangers who lie about jobs to those who look for work, or to those who do it."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from peers.worker import FOUNDING_PATIENCE_S
from tests.scenarios.memory_job import (
    Story,
    identity_of,
    prepare,
    submit,
    until_final,
)
from zoonet.config import encode
from zoonet.crypto import Identity
from zoonet.errors import InvalidRecord
from zoonet.jobs.reporter import MAX_OTHERS, Reporter, Status
from zoonet.records import (
    JOBS_KEY,
    JobList,
    JobRecord,
    JobResult,
    Progress,
    job_id_of,
    job_key,
    job_topic,
    sign,
    verify,
)
from zoonet.testing import run

CID = "b" + "a" * 58


def sybil(number: int) -> Identity:
    return Identity(hashlib.sha256(f"sybil {number}".encode()).digest())


async def say(story: Story, author: Identity, body: Any, *, sequence: int = 0) -> None:
    """Publish and announce a record as its author."""
    now = story.memory.clock.now()
    record = sign(author, body, sequence=sequence or int(now * 1000), expires_at=now + 90)
    transport, records = story.memory.peer(author)
    await records.publish(record)
    if isinstance(body, Progress):
        await records.announce(job_topic(body.job_id), record)
    transport.is_dead = True  # it answers nobody
    del story.memory.transports[author.peer_id]


def progress(job_id: str, **fields: Any) -> Progress:
    honest = Progress(job_id=job_id, phase="waiting", num_rounds=0, head=bytes(32), num_tokens=0)
    return msgspec.structs.replace(honest, **fields)


async def story_of(folder: Path, *names: str) -> Story:
    story = Story(folder)
    for name in names:
        await story.add(name)
    return story


def test_a_crowd_that_claims_to_take_part_does_not_fill_the_memory(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        node = await story.node("ada")
        job_id = "0" * 32
        reporter = Reporter(node, job_id, Status(name="ada"), lambda record: None)
        expires_at = story.memory.clock.now() + 60
        friend = sign(identity_of("bob"), progress(job_id), sequence=1, expires_at=expires_at)
        for number in range(MAX_OTHERS + 50):
            body = progress(job_id)
            reporter._hear(sign(sybil(number), body, sequence=1, expires_at=expires_at))
            if number % 500 == 0:  # an honest peer says something now and then
                friend = sign(identity_of("bob"), body, sequence=number + 2, expires_at=expires_at)
                reporter._hear(friend)
        assert len(reporter.others) == MAX_OTHERS
        assert reporter.others[identity_of("bob").peer_id] == friend

    run(main())


def test_strangers_who_say_that_they_wait_for_a_round_only_delay_its_founding(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        story = await story_of(tmp_path, "ada", "bob", "cyd")
        submitter = await story.node("sue")
        prepared = prepare(submitter)
        job_id = await submit(submitter, prepared)
        for number in range(20):
            await say(story, sybil(number), progress(job_id))
        started = asyncio.get_running_loop().time()
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        assert asyncio.get_running_loop().time() - started < 400
        await story.close()

    run(main())


def test_strangers_who_boast_of_rounds_stop_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        story = await story_of(tmp_path, "ada", "bob", "cyd")
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter))
        for number in range(20):
            boast = progress(
                job_id,
                phase="finished",
                num_rounds=10**9,
                num_tokens=10**12,
                head=bytes([number]) * 32,
                eval_loss=0.001,
                eval_round=10**9,
            )
            await say(story, sybil(number), boast)
        view = await until_final(submitter, job_id)
        assert view.phase == "finished" and view.result is not None
        await story.close()

    run(main())


def test_a_job_whose_peers_never_come_gives_way_to_one_that_can_begin(tmp_path: Path) -> None:
    """Whoever submits an old enough job for a thousand peers would have kept all workers."""

    async def main() -> None:
        story = Story(tmp_path)
        hostile = await story.node("mal")
        await submit(hostile, prepare(hostile, min_peers=64))
        for name in ("ada", "bob"):
            await story.add(name)
        await asyncio.sleep(60.0)
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter, min_peers=2))
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        assert asyncio.get_running_loop().time() < 3 * FOUNDING_PATIENCE_S
        await story.close()

    run(main())


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"{}", b"\x91" * 5000, bytes(200_000)], ids=len)
def test_a_job_whose_spec_is_garbage_is_left_alone_and_the_next_one_taken(
    tmp_path: Path, raw: bytes
) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        hostile = await story.node("mal")
        hostile.exchange.store.put(raw)
        prepared = prepare(hostile, min_peers=1)
        spec_cid = hostile.exchange.store.put(raw)
        identity = identity_of("mal")
        job_id = job_id_of(identity.peer_id, spec_cid)
        body = JobRecord(
            job_id=job_id,
            name="garbage",
            task="causal-lm",
            spec_cid=spec_cid,
            num_parameters=prepared.num_parameters,
            num_tokens=prepared.training.tokens,
            min_peers=1,
            max_peers=4,
            budget_max=0,
            submitted_at=1.0,
        )
        now = story.memory.clock.now()
        for one in (body, JobList(job_ids=(job_id,))):
            await hostile.records.publish(sign(identity, one, sequence=1, expires_at=now + 3600))
        await story.add("ada")
        submitter = await story.node("sue")
        honest = await submit(submitter, prepare(submitter, min_peers=1))
        view = await until_final(submitter, honest)
        assert view.phase == "finished"
        assert not story.workers["ada"].task.done()
        await story.close()

    run(main())


def test_a_job_whose_data_is_not_what_it_says_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        hostile = await story.node("mal")
        good = prepare(hostile, min_peers=1)
        bad_data = msgspec.structs.replace(good.data, num_train_tokens=10**9)
        for wrong in (
            msgspec.structs.replace(good, data=bad_data),
            msgspec.structs.replace(good, num_parameters=good.num_parameters + 1),
            msgspec.structs.replace(good, parameters_cid=good.tokenizer_cid),
            msgspec.structs.replace(good, tokenizer_cid=good.parameters_cid),
        ):
            hostile.exchange.store.put(encode(wrong))
            await hostile.catalog.publish(wrong)
        await story.add("ada")
        submitter = await story.node("sue")
        honest = await submit(submitter, prepare(submitter, min_peers=1, tokens=1280))
        view = await until_final(submitter, honest)
        assert view.phase == "finished"
        assert not story.workers["ada"].task.done()
        await story.close()

    run(main())


def test_nobody_but_the_submitter_cancels_a_job(tmp_path: Path) -> None:
    async def main() -> None:
        story = await story_of(tmp_path, "ada")
        submitter = await story.node("sue")
        prepared = prepare(submitter, min_peers=1)
        job_id = await submit(submitter, prepared)
        known = (await story.memory.peer(sybil(1))[1].fetch(job_key(job_id), JobRecord))[0]
        cancelled = msgspec.structs.replace(known.body, is_cancelled=True)
        now = story.memory.clock.now()
        forged = sign(sybil(1), cancelled, sequence=2**40, expires_at=now + 60)
        with pytest.raises(InvalidRecord):
            verify(forged.raw, now=now)
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        await story.close()

    run(main())


def test_thousands_of_jobs_by_strangers_do_not_stop_a_worker(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for number in range(12):
            names = (f"{number} {at}".encode() for at in range(100))
            ids = tuple(hashlib.sha256(name).hexdigest()[:32] for name in names)
            now = story.memory.clock.now()
            record = sign(sybil(number), JobList(job_ids=ids), sequence=1, expires_at=now + 3600)
            story.memory.records[JOBS_KEY][sybil(number).peer_id] = record.raw
        await story.add("ada")
        submitter = await story.node("sue")
        honest = await submit(submitter, prepare(submitter, min_peers=1))
        view = await until_final(submitter, honest)
        assert view.phase == "finished"
        await story.close()

    run(main())


def test_not_prevented_yet_a_result_by_a_stranger_keeps_workers_from_a_job_not_begun(
    tmp_path: Path,
) -> None:
    """Whether a job has ended is what the records say; nobody checks the chain before taking it."""

    async def main() -> None:
        story = Story(tmp_path)
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter, min_peers=1))
        lie = JobResult(
            job_id=job_id,
            model_cid=CID,
            model_bytes=1,
            chain_cid=CID,
            head=bytes(32),
            num_rounds=1,
            num_tokens=10**9,
        )
        now = story.memory.clock.now()
        record = sign(sybil(1), lie, sequence=1, expires_at=now + 7 * 24 * 3600)
        await story.memory.peer(sybil(1))[1].publish(record)
        await story.add("ada")
        await asyncio.sleep(300.0)
        view = await submitter.catalog.view(job_id)
        assert not [peer for peer in view.peers if peer.phase == "training"]
        await story.close()

    run(main())


def test_not_prevented_yet_strangers_who_say_that_they_take_part_fill_a_job_up(
    tmp_path: Path,
) -> None:
    """A worker that sees as many participants as the job wants looks for another one."""

    async def main() -> None:
        story = Story(tmp_path)
        submitter = await story.node("sue")
        prepared = prepare(submitter, min_peers=1)
        job_id = await submit(submitter, prepared)
        for number in range(prepared.peers.max):
            await say(story, sybil(number), progress(job_id, phase="training"))
        await story.add("ada")
        await asyncio.sleep(30.0)
        view = await submitter.catalog.view(job_id)
        assert view.num_rounds == 0
        await story.close()

    run(main())
