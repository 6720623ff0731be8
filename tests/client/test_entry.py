"""The client on the real network, on loopback: entering, serving a job's blocks, remembering."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from tests.client.swarm import tiny_job
from zoonet.client import EntryConfig, Network
from zoonet.crypto import Identity
from zoonet.errors import ConfigError, JobEnded, PeerUnreachable
from zoonet.net import Host, HostConfig

pytestmark = pytest.mark.p2p
torch.set_num_threads(1)

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zoonet-client-") as folder:
        yield Path(folder)


def entry(folder: Path) -> EntryConfig:
    return EntryConfig(folder=folder, listen=LOOPBACK, is_lan_enabled=False)


@asynccontextmanager
async def bootstrap(base: Path) -> AsyncIterator[tuple[str, ...]]:
    config = HostConfig(run_dir=base / "bootstrap", listen=LOOPBACK)
    async with Host.open(Identity(b"\x07" * 32), config) as host:
        yield await host.addresses()


def test_a_client_fetches_what_another_one_submitted_and_sees_it_cancelled(base: Path) -> None:
    async def story() -> None:
        async with (
            bootstrap(base) as addresses,
            await Network.join(addresses, config=entry(base / "a")) as alice,
            await Network.join(addresses, config=entry(base / "b")) as bob,
        ):
            job_id = await alice.submit(tiny_job(base))
            (view,) = await bob.jobs()
            assert (view.job_id, view.submitter) == (job_id, alice.identity.peer_id)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(ended(bob, job_id))
                await alice.cancel(job_id)
            assert waiting.result() == "cancelled"

    asyncio.run(story())


async def ended(network: Network, job_id: str) -> str:
    with pytest.raises(JobEnded) as caught:
        await network.wait(job_id)
    return caught.value.phase


def test_a_bootstrap_that_is_down_is_named(base: Path) -> None:
    async def story() -> None:
        async with bootstrap(base) as addresses:
            pass
        with pytest.raises(PeerUnreachable) as caught:
            await Network.join(addresses, config=entry(base / "a"))
        assert addresses[0] in str(caught.value)
        assert "check that one of them runs" in str(caught.value)

    asyncio.run(story())


def test_without_any_peer_to_ask_the_message_says_how_to_name_one(base: Path) -> None:
    async def story() -> None:
        with pytest.raises(PeerUnreachable, match=r"no peer is known here.*bootstrap="):
            await Network.join(config=entry(base / "a"))

    asyncio.run(story())


def test_a_malformed_address_is_refused_before_anything_starts(base: Path) -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="is not usable"):
            await Network.join(["/ip4/127.0.0.1/tcp/x"], config=entry(base / "a"))

    asyncio.run(story())


def test_a_cancelled_entry_leaves_nothing_open(base: Path) -> None:
    async def story() -> None:
        async with bootstrap(base) as addresses:
            joining = asyncio.create_task(Network.join(addresses, config=entry(base / "a")))
            await asyncio.sleep(0)
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "entry" not in names

    asyncio.run(story())
