"""Network over the in-memory twin, in virtual time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.numpy import load_file

from tests.client.swarm import ALICE, BOB, CAROL, DAVE, FakeWorker, network_of, tiny_job
from zoonet.blocks import cid_of
from zoonet.client import Network
from zoonet.config import encode
from zoonet.errors import ConfigError, JobEnded, ProtocolViolation, ShardUnavailable
from zoonet.testing import MemorySwarm, run

torch.set_num_threads(1)


def test_a_job_is_submitted_handed_over_finished_and_fetched(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path, name="tiny", budget_max=10000))
        (view,) = await network.jobs()
        assert (view.job_id, view.phase, view.budget_max) == (job_id, "open", 10000)
        bob = FakeWorker(swarm, BOB)
        async with asyncio.TaskGroup() as tasks:
            handing = tasks.create_task(network.handed_over(job_id))
            waiting = tasks.create_task(network.wait(job_id))
            await asyncio.sleep(60)
            assert not handing.done()
            await bob.do(job_id)
        assert waiting.result().phase == "finished"
        output = await network.result(job_id, tmp_path / "out")
        assert (output.eval_loss, output.num_rounds, output.num_tokens) == (1.25, 1, 1008)
        (contribution,) = output.contributions
        assert contribution.peer_id == BOB.peer_id
        assert contribution.name == f"worker {BOB.peer_id[-3:]}"
        assert contribution.num_tokens == 1008
        assert all(array.dtype == "float32" for array in load_file(output.model).values())
        assert json.loads(output.config.read_text())["width"] == 8
        assert json.loads(output.report.read_text())["contributions"][0]["num_rounds"] == 1
        assert json.loads(output.tokenizer.read_text())["kind"] == "char"
        assert sorted(path.name for path in output.folder.iterdir()) == [
            "chain.msgpack",
            "config.json",
            "model.safetensors",
            "report.json",
            "tokenizer.json",
        ]

    run(story())


def test_a_yaml_file_is_submitted_by_its_path(tmp_path: Path) -> None:
    async def story() -> None:
        network = await network_of(MemorySwarm())
        (tmp_path / "corpus.txt").write_text("some text " * 200)
        (tmp_path / "job.yaml").write_text(
            "name: from a file\n"
            "model: {num_layers: 1, num_heads: 1, width: 8, context: 8}\n"
            "data: {text: corpus.txt}\n"
            "training: {tokens: 1000}\n"
        )
        job_id = await network.submit(tmp_path / "job.yaml")
        assert (await network.job(job_id)).name == "from a file"
        assert await network.find(job_id[:4]) == job_id
        with pytest.raises(ConfigError, match="no open job begins with 'zz'"):
            await network.find("zz")

    run(story())


def test_a_cancelled_job_ends_those_who_wait_for_it(tmp_path: Path) -> None:
    async def story() -> None:
        network = await network_of(MemorySwarm())
        job_id = await network.submit(tiny_job(tmp_path))
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(ended(network, job_id))
            await asyncio.sleep(1)
            await network.cancel(job_id)
        assert waiting.result() == f"job {job_id} ended as cancelled: cancelled by its submitter"
        with pytest.raises(JobEnded):
            await network.handed_over(job_id)

    run(story())


async def ended(network: Network, job_id: str) -> str:
    with pytest.raises(JobEnded) as caught:
        await network.wait(job_id)
    return str(caught.value)


def test_a_job_nobody_takes_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        network = await network_of(MemorySwarm())
        job_id = await network.submit(tiny_job(tmp_path))
        with pytest.raises(ConfigError) as caught:
            await network.result(job_id, tmp_path / "out")
        assert str(caught.value) == (
            f"job {job_id} has no model yet: it is open "
            "(no peer has taken it yet; start one with: zoonet peer)"
        )

    run(story())


def test_a_job_that_every_peer_gives_up_ends_with_their_reason(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        await FakeWorker(swarm, BOB).say(job_id, phase="failed", note="the loss became NaN")
        message = await ended(network, job_id)
        assert message.endswith(f"{BOB.peer_id[-8:]} gave up: the loss became NaN")

    run(story())


def test_the_model_comes_from_the_peers_that_agree_though_others_lie(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        bob, carol, dave = (FakeWorker(swarm, identity) for identity in (BOB, CAROL, DAVE))
        prepared = await bob.fetch(job_id)
        chain = msgspec.msgpack.encode(bob.chain(job_id, prepared))
        for liar in (carol, dave):
            await liar.exchange.serve()
            await liar.publish(job_id, prepared, b"no model", b"no chain")
        view = await bob.publish(job_id, prepared, bob.model(prepared), chain)
        assert view.result is not None
        assert set(view.result.holders) == {CAROL.peer_id, DAVE.peer_id}
        output = await network.result(job_id, tmp_path / "out")
        assert output.contributions[0].peer_id == BOB.peer_id

    run(story())


def test_a_result_that_its_chain_does_not_carry_is_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        bob = FakeWorker(swarm, BOB)
        prepared = await bob.fetch(job_id)
        await bob.publish(job_id, prepared, bob.model(prepared), msgspec.msgpack.encode([]))
        with pytest.raises(ProtocolViolation, match="not finished"):
            await network.result(job_id, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    run(story())


@pytest.mark.parametrize(
    ("model", "message"), [(b"junk", "not a safetensors file"), (b"", "not a safetensors file")]
)
def test_a_model_that_is_not_the_jobs_is_refused(
    tmp_path: Path, model: bytes, message: str
) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        bob = FakeWorker(swarm, BOB)
        prepared = await bob.fetch(job_id)
        chain = msgspec.msgpack.encode(bob.chain(job_id, prepared))
        await bob.publish(job_id, prepared, model, chain)
        with pytest.raises(ProtocolViolation, match=message):
            await network.result(job_id, tmp_path / "out")

    run(story())


def test_holders_that_are_gone_make_the_result_unavailable(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        await FakeWorker(swarm, BOB).do(job_id)
        await swarm.kill(BOB.peer_id)
        with pytest.raises(ShardUnavailable, match="it can be fetched once a peer that holds it"):
            await network.result(job_id, tmp_path / "out")

    run(story())


def test_a_closed_network_lets_go_of_its_blocks(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        async with await network_of(swarm) as network:
            job_id = await network.submit(tiny_job(tmp_path))
        assert (await FakeWorker(swarm, BOB).catalog.view(job_id)).submitter == ALICE.peer_id

    run(story())


def test_the_spec_of_a_submitted_job_is_the_block_it_names(tmp_path: Path) -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        network = await network_of(swarm)
        job_id = await network.submit(tiny_job(tmp_path))
        prepared = await FakeWorker(swarm, BOB).fetch(job_id)
        assert (await network.job(job_id)).spec_cid == cid_of(encode(prepared))

    run(story())
