"""The story of a job in one process and virtual time: submitted, trained, handed back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from peers.worker import NUM_ANSWERED_FOR
from tests.scenarios.memory_job import (
    Story,
    certificates_of,
    identity_of,
    prepare,
    submit,
    until_final,
    until_rounds,
)
from zoonet.blocks import read_bytes
from zoonet.config.prepared import num_slots
from zoonet.errors import PeerUnreachable
from zoonet.testing import run
from zoonet.training.export import from_safetensors
from zoonet.training.models import layout_of


def test_strangers_train_a_submitted_job_and_hand_back_the_model(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for name in ("ada", "bob", "cyd"):
            await story.add(name)
        submitter = await story.node("sue")
        prepared = prepare(submitter)
        job_id = await submit(submitter, prepared)
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        losses = dict(view.eval_losses)
        assert losses[max(losses)] < losses[min(losses)] - 0.3
        await asyncio.sleep(60.0)
        view = await submitter.catalog.view(job_id)
        onlooker = await story.node("joe")
        assert dict((await onlooker.catalog.view(job_id)).eval_losses).keys() >= losses.keys()
        assert view.result is not None and len(view.result.holders) == 3
        await submitter.exchange.fetch_file(view.result.model_cid, view.result.holders)
        raw = read_bytes(submitter.exchange.store, view.result.model_cid)
        theta_P = from_safetensors(layout_of(prepared.model), raw)
        assert theta_P.size == prepared.num_parameters
        links = await certificates_of(submitter, view)
        slots = sorted(
            slot
            for link in links
            for share in link.result.contributions
            for start, stop in share.slots
            for slot in range(start, stop)
        )
        assert slots == list(range(num_slots(prepared)))
        await story.close()

    run(main())


def test_a_killed_worker_and_a_late_one_do_not_stop_the_job(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for name in ("ada", "bob", "cyd", "dan"):
            await story.add(name)
        submitter = await story.node("sue")
        prepared = prepare(submitter, tokens=12800, min_peers=4)
        job_id = await submit(submitter, prepared)
        await until_rounds(submitter, job_id, 2)
        await story.kill("dan")
        await story.add("eve")
        view = await until_final(submitter, job_id)
        links = await certificates_of(submitter, view)
        eve = identity_of("eve").peer_id
        with_eve = [
            link for link in links if eve in [share.peer for share in link.result.contributions]
        ]
        assert len(with_eve) >= 3
        assert len(links[-1].result.members) == 4
        await story.close()

    run(main())


def test_a_cancelled_job_is_dropped_by_its_workers(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for name in ("ada", "bob", "cyd"):
            await story.add(name)
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter, tokens=640_000))
        await until_rounds(submitter, job_id, 2)
        await submitter.catalog.cancel(job_id)
        await asyncio.sleep(30.0)
        view = await submitter.catalog.view(job_id)
        assert view.phase == "cancelled"
        assert {peer.phase for peer in view.peers} == {"finished"}
        await story.close()

    run(main())


@pytest.mark.parametrize("policy", [{"max_parameters": 10}, {"kinds": ("embedding",)}])
def test_a_job_that_does_not_fit_is_not_taken(tmp_path: Path, policy: dict[str, object]) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        await story.add("ada", **policy)
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter, min_peers=1))
        await asyncio.sleep(60.0)
        view = await submitter.catalog.view(job_id)
        assert view.phase == "open"
        assert "no peer has taken it yet" in view.note
        await story.close()

    run(main())


def test_an_embedding_model_is_trained_the_same_way(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for name in ("ada", "bob"):
            await story.add(name)
        submitter = await story.node("sue")
        prepared = prepare(submitter, tokens=7680, min_peers=2, kind="embedding", task="embedding")
        job_id = await submit(submitter, prepared)
        view = await until_final(submitter, job_id)
        losses = dict(view.eval_losses)
        assert view.phase == "finished"
        assert losses[max(losses)] < losses[min(losses)]
        await story.close()

    run(main())


def test_data_that_vanished_is_named_and_given_up_after_a_while(tmp_path: Path) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        submitter = await story.node("sue")
        prepared = prepare(submitter, min_peers=1)
        job_id = await submit(submitter, prepared)
        await story.memory.kill(submitter.peer_id)
        await story.add("ada")
        onlooker = await story.node("joe")
        await asyncio.sleep(30.0)
        view = await onlooker.catalog.view(job_id)
        assert view.phase == "training"
        assert "waiting for the job's data" in view.peers[0].note
        await asyncio.sleep(150.0)
        view = await onlooker.catalog.view(job_id)
        assert view.peers[0].phase == "failed"
        await story.close()

    run(main())


def test_a_worker_answers_for_the_last_jobs_that_it_finished_and_for_no_others(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        ada = await story.add("ada")
        submitter = await story.node("sue")
        finished = []
        for nonce in range(NUM_ANSWERED_FOR + 2):
            prepared = prepare(submitter, tokens=640, min_peers=1, nonce=nonce)
            finished.append(await submit(submitter, prepared))
            await until_final(submitter, finished[-1])
            await asyncio.sleep(30.0)
        cancelled = await submit(submitter, prepare(submitter, tokens=640_000, min_peers=1))
        await until_rounds(submitter, cancelled, 2)
        await submitter.catalog.cancel(cancelled)
        await asyncio.sleep(30.0)
        answers = {}
        for job_id in (*finished, cancelled):
            try:
                stream = await submitter.transport.open(
                    ada.node.peer_id, f"/zoonet/{job_id}/chain/1"
                )
                await stream.close()
                answers[job_id] = True
            except PeerUnreachable:
                answers[job_id] = False
        assert list(answers.values()) == [False, False, True, True, True, True, False]
        await story.close()

    run(main())
