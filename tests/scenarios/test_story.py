"""The story of a job in one process and virtual time: submitted, trained, handed back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_in

from peers.node import Node
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
from zoonet.blocks import put_bytes, read_bytes
from zoonet.config import PreparedJob
from zoonet.config.prepared import num_slots
from zoonet.errors import PeerUnreachable
from zoonet.testing import run
from zoonet.training.export import from_safetensors
from zoonet.training.models import layout_of
from zoonet.training.order import SampleOrder


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


@pytest.mark.parametrize("skew_s", [60.0, 120.0, 280.0])
def test_clocks_that_differ_by_minutes_do_not_keep_peers_apart(
    tmp_path: Path, skew_s: float
) -> None:
    async def main() -> None:
        story = Story(tmp_path)
        for name, ahead_s in (("ada", -skew_s), ("bob", 0.0), ("cyd", skew_s)):
            await story.add(name, skew_s=ahead_s)
        submitter = await story.node("sue")
        job_id = await submit(submitter, prepare(submitter))
        began = asyncio.get_running_loop().time()
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        assert asyncio.get_running_loop().time() - began < 120.0
        links = await certificates_of(submitter, view)
        everyone = {identity_of(name).peer_id for name in ("ada", "bob", "cyd")}
        for link in links[:-1]:
            assert {share.peer for share in link.result.contributions} == everyone
        await story.close()

    run(main())


def test_a_slot_that_nobody_can_read_is_skipped_and_named(tmp_path: Path) -> None:
    """The submitter's file has one byte that is no token of its vocabulary."""

    async def main() -> None:
        story = Story(tmp_path)
        for name in ("ada", "bob", "cyd"):
            await story.add(name)
        submitter = await story.node("sue")
        prepared, place = spoiled(submitter, prepare(submitter, tokens=2560), slot=17)
        job_id = await submit(submitter, prepared)
        view = await until_final(submitter, job_id)
        assert view.phase == "finished"
        links = await certificates_of(submitter, view)
        done = [
            slot
            for link in links
            for share in link.result.contributions
            for start, stop in share.slots
            for slot in range(start, stop)
        ]
        assert sorted(done) == [slot for slot in range(40) if slot != 17]
        assert view.num_tokens == 39 * 64
        for peer in view.peers:
            assert "1 data slots skipped, nobody could train them: 17;" in peer.note
            assert str(place) in peer.note
        await story.close()

    run(main())


def spoiled(node: Node, prepared: PreparedJob, *, slot: int) -> tuple[PreparedJob, int]:
    """The job with a byte of that slot's first sample spoiled, and where this sample begins."""
    data, store = prepared.data, node.exchange.store
    tokens = bytearray(read_bytes(store, data.train_cid))
    order = SampleOrder(len(tokens), prepared.model.context, prepared.training.seed)
    place = int(order.slot_starts(slot, prepared.training.batch_size)[0])
    tokens[place + 3] = 255
    cid = put_bytes(store, bytes(tokens))
    return replace_in(prepared, data=replace_in(data, train_cid=cid)), place
