"""The published interface, from a notebook's running loop and from a plain script."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
import torch

from tests.client.swarm import ALICE, BOB, FakeWorker, network_of, tiny_job
from zoonet.client import Client, Network
from zoonet.clock import SystemClock
from zoonet.crypto import Identity
from zoonet.errors import ConfigError, KeyFileError, PeerUnreachable, SpecError
from zoonet.testing import MemorySwarm

torch.set_num_threads(1)


class Town:
    """A swarm in the client's own loop, with one worker that does the first job it sees."""

    def __init__(self, *, is_lazy: bool = False) -> None:
        self.is_lazy = is_lazy
        self.thread_names: list[str] = []
        self.identities: list[Identity] = []
        self.work: asyncio.Task[None] | None = None

    async def connect(self, identity: Identity) -> Network:
        self.thread_names.append(threading.current_thread().name)
        self.identities.append(identity)
        swarm = MemorySwarm(clock=SystemClock())
        network = await network_of(swarm, identity)
        if not self.is_lazy:
            self.work = asyncio.create_task(self._work(FakeWorker(swarm, BOB)))
        return network

    async def _work(self, worker: FakeWorker) -> None:
        async with worker.access.records.listen("jobs") as events:
            job = await anext(events)
            await worker.do(job.body.job_id)


@pytest.mark.asyncio
async def test_the_published_snippet_runs_in_a_running_loop(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text " * 200)
    (tmp_path / "training_config.yaml").write_text(
        "model: {num_layers: 1, num_heads: 1, width: 8, context: 8}\n"
        "data: {text: text.txt}\n"
        "training: {tokens: 1000}\n"
    )
    town = Town()
    client = Client(api_key=ALICE.api_key, connect=town.connect)
    job = client.train(config=str(tmp_path / "training_config.yaml"), max_budget=5000)
    view = await job.wait()
    assert (view.phase, view.budget_max) == ("finished", 5000)
    assert view.submitter == ALICE.peer_id
    output = await job.result(tmp_path / "out")
    assert output.model.exists()
    assert [identity.peer_id for identity in town.identities] == [ALICE.peer_id]
    assert town.thread_names == ["zoonet"]
    client.close()


def test_the_sync_forms_run_in_a_plain_script(tmp_path: Path) -> None:
    with Client(ALICE.api_key, connect=Town().connect) as client:
        job = client.train(tiny_job(tmp_path))
        assert len(job.job_id) == 32
        assert repr(job) == f"Job({job.job_id})"
        job.handed_over_sync()
        assert job.wait_sync().phase == "finished"
        assert job.result_sync(tmp_path / "out").num_rounds == 1
        with pytest.raises(ConfigError, match="the job is finished: it cannot be cancelled"):
            job.cancel_sync()


@pytest.mark.asyncio
async def test_progress_is_iterated_until_the_end(tmp_path: Path) -> None:
    with Client(ALICE.api_key, connect=Town().connect) as client:
        job = client.train(tiny_job(tmp_path))
        phases = [view.phase async for view in job.progress()]
    assert phases[-1] == "finished"
    assert "open" in phases


@pytest.mark.asyncio
async def test_progress_may_be_left_early(tmp_path: Path) -> None:
    with Client(ALICE.api_key, connect=Town(is_lazy=True).connect) as client:
        job = client.train(tiny_job(tmp_path))
        async with aclosing(job.progress()) as views:
            assert (await anext(views)).phase == "open"
        await job.cancel()
        with pytest.raises(Exception, match="ended as cancelled"):
            await job.wait()


def test_two_jobs_of_a_client_share_one_network(tmp_path: Path) -> None:
    town = Town(is_lazy=True)
    with Client(ALICE.api_key, connect=town.connect) as client:
        job = tiny_job(tmp_path)
        first, second = client.train(job), client.train(job)
        assert first.job_id != second.job_id
    assert len(town.identities) == 1


def test_a_network_that_cannot_be_entered_says_so_and_is_tried_again(tmp_path: Path) -> None:
    town = Town()
    tries = []

    async def flaky(identity: Identity) -> Network:
        tries.append(identity)
        if len(tries) == 1:
            raise PeerUnreachable("none of the peers to join answers")
        return await town.connect(identity)

    with Client(ALICE.api_key, connect=flaky) as client:
        job = tiny_job(tmp_path)
        with pytest.raises(PeerUnreachable, match="none of the peers to join answers"):
            client.train(job).wait_sync()
        assert client.train(job).wait_sync().phase == "finished"


def test_a_wrong_job_is_refused_where_it_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("training: {tokns: 1}\n")
    with Client(ALICE.api_key, connect=Town().connect) as client:
        with pytest.raises(SpecError, match="line 1: unknown key 'tokns' in training"):
            client.train(tmp_path / "job.yaml")
        vanished = tiny_job(tmp_path, data_config={"text": str(tmp_path / "gone.txt")})
        with pytest.raises(ConfigError, match="there is no such file or folder"):
            client.train(vanished).wait_sync()


def test_a_wrong_key_says_how_to_print_the_right_one() -> None:
    with pytest.raises(KeyFileError, match="zoonet key export"):
        Client(api_key="...")


def test_a_closed_client_refuses_and_closing_twice_is_fine(tmp_path: Path) -> None:
    client = Client(ALICE.api_key, connect=Town(is_lazy=True).connect)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.train(tiny_job(tmp_path))
