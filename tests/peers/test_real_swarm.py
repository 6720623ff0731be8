"""Swarms of real processes: what outlives whom, who finds whom, and what a relay is for."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.peers.real import ENDLESS, descendants, said, swarm_in
from zoonet.blocks import MemoryBlockStore, put_bytes

pytestmark = [pytest.mark.p2p, pytest.mark.slow]


def cached(home: Path) -> dict[str, list[str]]:
    """Peers met before, as the state directory remembers them."""
    peers = json.loads((home / "peers.json").read_text())["peers"]
    return {peer["peer_id"]: peer["addresses"] for peer in peers}


def peer_id_in(address: str) -> str:
    return address.rpartition("/p2p/")[2]


@pytest.mark.asyncio
async def test_a_job_outlives_its_submitter_and_the_bootstrap(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        door, address = await swarm.bootstrap()
        first = await swarm.peer("first", "--join", address)
        second = await swarm.peer("second", "--join", address)
        await asyncio.gather(said(first, "roles=worker"), said(second, "roles=worker"))
        second.process.terminate()
        assert await second.process.wait() == 0

        job_id = await swarm.submit(address, tokens=60_000, min_peers=2)
        await swarm.kill(door)
        remembered = cached(swarm.home("second"))
        door_address = remembered.pop(peer_id_in(address))
        assert door_address == [address], "the bootstrap is remembered, too"
        [[entrance]] = remembered.values()  # but nobody who only submitted

        second = await swarm.peer("second", "--join", address)
        await said(second, "does not answer", "joined peers=1", f"took job={job_id}")
        watched, jobs, peers = await asyncio.gather(
            swarm.run("watcher", "watch", job_id[:6], "--json", "--join", entrance),
            swarm.run("looker", "jobs", "--json", "--join", entrance),
            swarm.run("visitor", "peers", "--json", "--join", entrance),
        )
        [job] = jobs.json
        assert (job["job_id"], job["num_peers"]) == (job_id, 2)
        workers = [peer for peer in peers.json if peer["roles"] == ["worker"]]
        assert sorted(peer["name"] for peer in workers) == ["first", "second"]
        last = json.loads(watched.output.splitlines()[-1])
        assert (last["phase"], last["num_tokens"] >= 60_000) == ("finished", True)
        assert {peer["name"] for peer in last["peers"]} == {"first", "second"}

        out = scratch / "model"
        where = ("-o", str(out), "--car", "--json", "--join", entrance)
        result = await swarm.run("fetcher", "result", job_id[:6], *where)
        report = json.loads((out / "report.json").read_text())
        assert result.json == report
        assert {one["name"] for one in report["contributions"]} == {"first", "second"}
        assert min(one["num_rounds"] for one in report["contributions"]) >= 3
        assert report["eval_loss"] < np.log(256), "better than to guess among the bytes"
        model = (out / "model.safetensors").read_bytes()
        assert report["model_cid"] == put_bytes(MemoryBlockStore(), model)
        assert (out / "model.car").read_bytes().endswith(model), "a single block"
        weights = load_file(out / "model.safetensors")
        assert sum(weight.size for weight in weights.values()) == report["num_parameters"]


@pytest.mark.asyncio
async def test_a_job_whose_members_all_stop_starts_over_until_its_submitter_cancels_it(
    scratch: Path,
) -> None:
    """Checkpoints are yet to come: until then what nobody holds any more is trained again."""
    async with swarm_in(scratch) as swarm:
        _, address = await swarm.bootstrap()
        names = ("first", "second")
        peers = [await swarm.peer(name, "--join", address) for name in names]
        await asyncio.gather(*(said(peer, "joined") for peer in peers))
        job_id = await swarm.submit(address, tokens=ENDLESS, min_peers=2)
        await asyncio.gather(*(said(peer, "certified round=3") for peer in peers))
        for peer in peers:
            peer.process.terminate()
        assert [await peer.process.wait() for peer in peers] == [0, 0]

        peers = [await swarm.peer(name, "--join", address) for name in names]
        again = ("certified round=0 members=2 contributors=2", "certified round=3")
        where = (job_id, "--join", address)
        refused, *_ = await asyncio.gather(
            swarm.run("stranger", "cancel", *where), *(said(peer, *again) for peer in peers)
        )
        assert refused.code == 1
        assert refused.errors.startswith(f"error: job {job_id} was submitted by ")
        assert refused.errors.endswith("only its key can cancel it\n")
        cancelled = await swarm.run("submitter", "cancel", *where)
        assert all(peer.is_running for peer in peers)
        assert (cancelled.code, cancelled.output) == (0, f"cancelled {job_id}\n")
        await asyncio.gather(*(said(peer, "was cancelled by its submitter") for peer in peers))
        assert (await swarm.run("looker", "jobs", "--json", "--join", address)).json == []
        for peer in peers:
            assert "ERROR" not in peer.log_path.read_text()
            assert "failed here" not in peer.log_path.read_text()


@pytest.mark.asyncio
async def test_peers_on_one_host_find_that_they_are_near_and_meet_within_rounds(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        _, address = await swarm.bootstrap()
        names = ("first", "second", "third")
        peers = [await swarm.peer(name, "--join", address) for name in names]
        await asyncio.gather(*(said(peer, "roles=worker") for peer in peers))
        job_id = await swarm.submit(address, tokens=ENDLESS, min_peers=3, site_steps=5)
        await asyncio.gather(*(said(peer, "site met=3 of=3", "evaluated") for peer in peers))
        await swarm.run("submitter", "cancel", job_id, "--join", address)
        await asyncio.gather(*(said(peer, "was cancelled by its submitter") for peer in peers))
        for peer in peers:
            log = peer.log_path.read_text()
            assert "contributors=3 applied=True" in log
            losses = [float(loss) for loss in re.findall(r"evaluated rounds=\d+ loss=(\S+)", log)]
            assert losses[-1] < np.log(256), "better than to guess among the bytes"
            assert "ERROR" not in log


@pytest.mark.asyncio
async def test_a_client_that_does_not_listen_trains_through_the_bootstraps_relay(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        _, address = await swarm.bootstrap("--public")
        peers = [
            await swarm.peer("open", "--join", address),
            await swarm.peer("behind-nat", "--client", "--join", address, listen=""),
        ]
        await asyncio.gather(*(said(peer, "joined") for peer in peers))
        daemon = descendants(peers[1])["p2pd"]
        states = {connection.status for connection in daemon.net_connections("tcp")}
        assert psutil.CONN_ESTABLISHED in states
        assert psutil.CONN_LISTEN not in states

        await swarm.submit(address, tokens=60_000, min_peers=2)
        await asyncio.gather(*(said(peer, "finished job=") for peer in peers))
        for peer in peers:
            assert peer.log_path.read_text().count("contributors=2 applied=True") >= 3
        listed = (await swarm.run("looker", "peers", "--json", "--join", address)).json
        [client] = [peer for peer in listed if peer["name"] == "behind-nat"]
        assert client["reachability"] == "relayed"
        assert all("/p2p-circuit" in text for text in client["addresses"])
