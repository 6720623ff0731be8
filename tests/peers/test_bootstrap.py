"""The bootstrap as a process: its line, its stable identity, its clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from peers.bootstrap import by_reach, invitation
from peers.doctor import check_address

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "peers.cli", "bootstrap", "--home", str(home), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(role: subprocess.Popen[str]) -> dict[str, Any]:
    assert role.stdout is not None
    return dict(json.loads(role.stdout.readline()))


def stop(role: subprocess.Popen[str]) -> tuple[int, str]:
    role.send_signal(signal.SIGTERM)
    _, errors = role.communicate(timeout=240)
    return role.returncode, errors


@pytest.mark.p2p
def test_it_keeps_its_identity_and_leaves_nothing_behind(tmp_path: Path) -> None:
    peer_ids = []
    for _ in range(2):
        role = start(tmp_path, "--listen", LOOPBACK, "--json")
        line = ready(role)
        peer_ids.append(line["peer_id"])
        assert line["addresses"][0].endswith(f"/p2p/{line['peer_id']}")
        daemons = psutil.Process(role.pid).children(recursive=True)
        assert daemons
        assert stop(role)[0] == 0
        assert psutil.wait_procs(daemons, timeout=240)[1] == []
        left = set(os.listdir(tmp_path))  # stopped at once it may not have met anyone to remember
        assert left in ({"identity.pem"}, {"identity.pem", "peers.json"})
    assert peer_ids[0] == peer_ids[1]


@pytest.mark.p2p
def test_two_bootstraps_connect_and_say_so(tmp_path: Path) -> None:
    first = start(tmp_path / "1", "--listen", LOOPBACK, "--json")
    address = ready(first)["addresses"][0]
    second = start(tmp_path / "2", "--listen", LOOPBACK, "--json", "--join", address)
    name = ready(second)["peer_id"][-8:]
    assert first.stderr is not None
    for line in first.stderr:
        if f"connected peer={name}" in line:
            break
    assert [stop(role)[0] for role in (second, first)] == [0, 0]


@pytest.mark.p2p
def test_a_port_in_use_is_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        role = start(tmp_path, "--listen", f"/ip4/127.0.0.1/tcp/{port}")
        _, errors = role.communicate(timeout=240)
    assert role.returncode == 1
    assert f"{port}" in errors
    assert "Traceback" not in errors


def test_a_malformed_address_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    role = start(tmp_path, "--join", "/ip4/127.0.0.1/tcp/1")
    _, errors = role.communicate(timeout=240)
    assert role.returncode == 1
    assert errors.startswith("error: the address '/ip4/127.0.0.1/tcp/1' is not usable")
    assert errors.count("\n") == 1


def test_the_invitation_names_an_address_that_others_can_reach_first() -> None:
    addresses = by_reach(
        ["/ip6/::1/tcp/1/p2p/A", "/ip4/127.0.0.1/tcp/1/p2p/A", "/ip4/192.0.2.1/tcp/1/p2p/A"]
    )
    assert addresses[0].startswith("/ip4/192.0.2.1")
    assert "zoonet peer --join /ip4/192.0.2.1/tcp/1/p2p/A" in invitation(addresses)
    assert "nobody can join" in invitation([])


@pytest.mark.p2p
@pytest.mark.asyncio
async def test_the_doctor_finds_a_running_bootstrap_well(tmp_path: Path) -> None:
    role = start(tmp_path, "--listen", LOOPBACK, "--json")
    finding = await check_address(ready(role)["addresses"][0])
    assert (finding.is_well, finding.found) == (True, "a peer answers")
    assert stop(role)[0] == 0
