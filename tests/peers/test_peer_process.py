"""A peer as a process: how it ends, what it leaves, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from peers.bootstrap import require_free_ports
from peers.peer import PeerOptions
from tests.peers.real import (
    ENDLESS,
    NOBODY,
    Ended,
    Swarm,
    descendants,
    files_of,
    gone,
    invitation_of,
    said,
    swarm_in,
)
from zoonet.client import EntryConfig
from zoonet.client.entry import sweep_left_over
from zoonet.errors import ConfigError
from zoonet.net.daemon import RunDirectory

pytestmark = pytest.mark.p2p


def temporary_files(scratch: Path) -> list[str]:
    """What was left where programs put temporary files, but for torch's own empty directory."""
    return [name for name in os.listdir(scratch / "tmp") if "torchinductor" not in name]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_signal_in_the_middle_of_training_leaves_only_the_state_directory(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        first = await swarm.peer("first")
        address = await invitation_of(first)
        second = await swarm.peer("second", "--join", address)
        await said(second, "joined")
        await swarm.submit(address, tokens=ENDLESS, min_peers=2)
        await asyncio.gather(*(said(peer, "certified round=1") for peer in (first, second)))
        children = [descendants(peer) for peer in (first, second)]
        assert [set(names) for names in children] == [{"p2pd", "trainer"}] * 2

        first.process.send_signal(signal.SIGTERM)
        second.process.send_signal(signal.SIGINT)
        assert [await peer.process.wait() for peer in (first, second)] == [0, 0]
        for peer, names in zip((first, second), children, strict=True):
            assert await gone(*names.values())
            assert "Traceback" not in peer.log_path.read_text()
        for name in ("first", "second"):
            assert files_of(swarm.home(name)) == {"identity.pem", "blocks", "jobs", "peers.json"}
            [other] = json.loads((swarm.home(name) / "peers.json").read_text())["peers"]
            assert other["addresses"], "the submitter, which has left for good, is not remembered"
        assert temporary_files(scratch) == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_peer_of_two_devices_trains_with_one_of_one_and_survives_the_loss_of_a_rank(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        one = await swarm.peer("one")
        address = await invitation_of(one)
        two = await swarm.peer("two", "--join", address, "--device", "cpu,cpu")
        await said(two, "joined")
        await swarm.submit(address, tokens=ENDLESS, min_peers=2)
        await asyncio.gather(*(said(peer, "certified round=1") for peer in (one, two)))
        children = descendants(two)
        assert set(children) == {"p2pd", "trainer", "rank"}

        children["rank"].kill()
        await said(two, "the local work of this round is lost: the trainer process ended")
        assert await gone(children["rank"], children["trainer"])
        while two.log_path.read_text().count("trainer ready") < 2:
            await asyncio.sleep(0.05)
        others = descendants(two)
        assert set(others) == {"p2pd", "trainer", "rank"}
        log = two.log_path.read_text()
        so_far = log.count("certified round=")
        while two.log_path.read_text().count("certified round=") < so_far + 2:
            await asyncio.sleep(0.05)

        two.process.terminate()
        assert await two.process.wait() == 0
        assert await gone(*others.values())
        assert temporary_files(scratch) == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_after_a_power_cut_nothing_runs_on_and_the_next_start_sweeps(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        peer = await swarm.peer("alone")
        address = await invitation_of(peer)
        job_id = await swarm.submit(address, tokens=ENDLESS, min_peers=1)
        await said(peer, "certified round=1")
        children = descendants(peer)
        assert set(children) == {"p2pd", "trainer"}
        await swarm.kill(peer)
        assert await gone(*children.values())
        run = swarm.home("alone") / "run"
        assert {"lock", "streams.sock"} <= files_of(run), "nobody was there to tidy up"

        (run / "p2pclient-0.sock").touch()  # of an RPC that was under way
        peer = await swarm.peer("alone")
        again = await invitation_of(peer)
        assert again.rpartition("/")[2] == address.rpartition("/")[2], "the same identity"
        assert "p2pclient-0.sock" not in files_of(run)
        assert (swarm.home("alone") / "jobs" / job_id).is_dir()
        peer.process.terminate()
        assert await peer.process.wait() == 0
        assert not run.exists()
        assert temporary_files(scratch) == []


@pytest.mark.asyncio
async def test_a_cache_that_cannot_be_written_is_a_warning(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        (swarm.home("full") / "peers.json").mkdir(parents=True)
        peer = await swarm.peer("full")
        await invitation_of(peer)
        await said(peer, "starting without the peer cache", "will not be remembered")
        peer.process.terminate()
        assert await peer.process.wait() == 0


def test_what_a_killed_client_left_is_swept_by_a_later_one(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    for name, age_s in (("killed", 7200), ("running", 7200), ("starting", 60)):
        run = tmp_path / f"zoonet-{name}" / "run"
        run.mkdir(parents=True)
        for file in ("lock", "p2pd.sock"):
            (run / file).touch()
        os.utime(run.parent, (now - age_s, now - age_s))
    with RunDirectory(tmp_path / "zoonet-running" / "run"):
        sweep_left_over(tmp_path, now=now)
    assert files_of(tmp_path) == {"zoonet-running", "zoonet-starting"}


# What a user gets wrong.


def complaint(ended: Ended) -> str:
    """The one line that says what is wrong; there is no other above the level of the story."""
    assert ended.code == 1, ended.errors
    assert ended.output == ""
    *story, line = ended.errors.splitlines()
    assert all(" INFO " in before for before in story), ended.errors
    assert line.startswith("error: ")
    return line


async def start_wrongly(swarm: Swarm, *options: str, name: str = "wrong") -> str:
    """Start a peer that cannot start; return its complaint."""
    return complaint(await swarm.run(name, "peer", "--no-lan", *options))


@pytest.mark.asyncio
async def test_an_address_to_join_that_is_none_is_quoted_with_a_right_one(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        line = await start_wrongly(swarm, "--join", "/ip4/127.0.0.1/tcp/31330")
        assert "'/ip4/127.0.0.1/tcp/31330' is not usable: it does not end in /p2p/" in line
        assert "a right one looks like /ip4/" in line


@pytest.mark.asyncio
async def test_a_peer_that_nobody_answers_says_whom_it_asked_and_goes_on(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        peer = await swarm.peer("first", "--join", NOBODY)
        await invitation_of(peer)
        await said(peer, "WARNING", f"peer={NOBODY[-8:]} does not answer, trying again later")
        await said(peer, "none of the peers named with --join answers; they are tried again")
        assert peer.is_running


@pytest.mark.asyncio
async def test_a_key_that_others_can_read_is_named_with_the_cure(scratch: Path) -> None:
    async with swarm_in(scratch) as swarm:
        await swarm.run("wrong", "key", "show")
        key = swarm.home("wrong").resolve() / "identity.pem"
        key.chmod(0o640)
        line = await start_wrongly(swarm)
        assert f"the key file {key} can be read by others (mode 0640)" in line
        assert line.endswith(f"chmod 600 {key}")


@pytest.mark.asyncio
async def test_a_port_in_use_is_named(scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        async with swarm_in(scratch) as swarm:
            line = await start_wrongly(swarm, "--listen", address)
    assert f"cannot listen on {address}: the port is in use" in line
    assert "choose another" in line


@pytest.mark.asyncio
async def test_the_port_of_another_peer_is_in_use_too(scratch: Path) -> None:
    """Two daemons would share it, and each get visitors that look for the other."""
    async with swarm_in(scratch) as swarm:
        _, entrance = await swarm.bootstrap()
        address = entrance.partition("/p2p/")[0]
        line = await start_wrongly(swarm, "--listen", address)
        assert f"cannot listen on {address}: the port is in use" in line


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/udp/{}/quic-v1", "/ip6/::1/tcp/{}"])
def test_the_same_port_of_another_kind_is_free(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        require_free_ports([address.format(taken.getsockname()[1]), "/dns4/a.example/tcp/1"])


@pytest.mark.asyncio
async def test_a_second_peer_with_the_same_state_directory_does_not_disturb_the_first(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        first = await swarm.peer("first")
        await invitation_of(first)
        line = await start_wrongly(swarm, "--listen", "/ip4/127.0.0.1/tcp/0", name="first")
        assert f"another node already runs in {swarm.home('first').resolve()}" in line
        job = swarm.write_job(tokens=1000, min_peers=1)
        line = complaint(await swarm.run("first", "submit", str(job)))
        assert "a peer is running with the key of" in line and "--home DIR" in line
        first.process.terminate()
        assert await first.process.wait() == 0


@pytest.mark.asyncio
async def test_a_job_with_a_typo_is_refused_with_its_line_and_the_right_word(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        job = swarm.write_job(tokens=1000, min_peers=1)
        job.write_text(job.read_text().replace("inner_steps", "iner_steps"))
        line = complaint(await swarm.run("submitter", "submit", str(job)))
        number = job.read_text().splitlines().index("  iner_steps: 20") + 1
        assert f"line {number}: " in line
        assert line.endswith("did you mean 'inner_steps'?")


@pytest.mark.asyncio
async def test_a_file_in_the_place_of_the_state_directory_is_named_with_the_cure(
    scratch: Path,
) -> None:
    async with swarm_in(scratch) as swarm:
        swarm.home("wrong").write_text("in the way")
        line = complaint(await swarm.run("wrong", "jobs"))
        assert f"cannot make the state directory {swarm.home('wrong')}: File exists" in line
        assert line.endswith("name another with --home or ZOONET_HOME")


def test_a_name_that_others_would_refuse_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name has 201 characters"):
        PeerOptions(home=tmp_path, name="x" * 201)
    with pytest.raises(ConfigError, match="a name of 201 characters"):
        EntryConfig(folder=tmp_path, name="x" * 201)
