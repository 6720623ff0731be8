"""Signals, state directories and children, with real processes."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest

from peers import runtime
from peers.processes import Child, ChildFailed, Family
from zoonet.errors import StorageError

WAITING_ROLE = """
import asyncio, sys
from peers import runtime

async def role():
    print("ready", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        {goodbye}
        print("closed", flush=True)

try:
    runtime.run(role())
except runtime.Interrupted as interrupted:
    sys.exit(interrupted.exit_code)
"""


def start_role(goodbye: str = "pass") -> subprocess.Popen[str]:
    role = subprocess.Popen(
        [sys.executable, "-c", WAITING_ROLE.format(goodbye=goodbye)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert role.stdout is not None
    assert role.stdout.readline() == "ready\n"
    return role


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_role_close_and_shows_in_the_exit_code(number: signal.Signals) -> None:
    role = start_role()
    role.send_signal(number)
    output, _ = role.communicate(timeout=240)
    assert output == "closed\n"
    assert role.returncode == 128 + number


def test_a_second_signal_ends_a_role_that_does_not_close() -> None:
    role = start_role("print('closing', flush=True); await asyncio.Event().wait()")
    role.send_signal(signal.SIGINT)
    assert role.stdout is not None
    assert role.stdout.readline() == "closing\n"
    role.send_signal(signal.SIGINT)
    output, _ = role.communicate(timeout=240)
    assert (output, role.returncode) == ("", 130)


def test_what_a_role_raises_passes_through() -> None:
    async def role() -> None:
        raise StorageError("full")

    with pytest.raises(StorageError, match="full"):
        runtime.run(role())


def test_the_state_directory_is_the_chosen_one_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOONET_HOME", str(tmp_path / "from-environment"))
    assert runtime.home(str(tmp_path / "chosen")).path == (tmp_path / "chosen").resolve()
    assert runtime.home().path == (tmp_path / "from-environment").resolve()


def test_sockets_lie_in_the_state_directory_unless_its_path_is_too_long(tmp_path: Path) -> None:
    short = runtime.Home(Path("/tmp/z"))
    assert short.run_dir == Path("/tmp/z/run")
    long = runtime.Home(tmp_path / ("x" * 100))
    assert len(os.fsencode(long.run_dir)) < 70
    assert long.run_dir != runtime.Home(tmp_path / ("y" * 100)).run_dir


@pytest.mark.asyncio
async def test_a_child_that_fails_is_told_with_what_it_said_last(tmp_path: Path) -> None:
    async with Family(tmp_path).keep() as family:
        child = await family.start("broken", ["frobnicate"])
        with pytest.raises(ChildFailed, match="No such command 'frobnicate'"):
            await family.first_line(child)


@pytest.mark.asyncio
async def test_no_child_outlives_its_family(tmp_path: Path) -> None:
    async with Family(tmp_path).keep() as family:
        child = await sleeping_child(family)
        assert child.is_running
    assert not child.is_running
    assert not psutil.pid_exists(child.process.pid)


@pytest.mark.asyncio
async def test_a_killed_child_is_gone_at_once(tmp_path: Path) -> None:
    async with Family(tmp_path).keep() as family:
        child = await sleeping_child(family)
        await family.kill(child)
        assert child.process.returncode == -signal.SIGKILL


async def sleeping_child(family: Family) -> Child:
    """A `zoonet doctor` that waits for a listener which never says hello."""
    peer_id = "16Uiu2HAmPLe7Mzm8TsYUubgCAW1aJoeFScxrLj8ppHFivPo97bUZ"
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}"
    child = await family.start("sleeper", ["doctor", "--join", address])
    await asyncio.wait_for(connected.wait(), 30)
    server.close()
    return child


FREES_LARGE_AND_SMALL = """
import sys, threading
import numpy as np
from pathlib import Path
from peers import runtime

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

if sys.argv[1] == "tamed":
    assert runtime.tame_allocator()
np.ones(4 << 20)  # freed: untamed, ones of up to 32 MiB come from heaps from now on
kept = []

def work():
    large = [np.ones(1 << 20) for _ in range(2)]
    kept.append(bytes(100))  # stands behind them in this thread's heap
    del large

before = resident_mib()
for _ in range(8):
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no heaps")
def test_in_a_role_freed_arrays_do_not_stay_in_the_heaps_of_threads() -> None:
    def held_mib(how: str) -> int:
        command = [sys.executable, "-c", FREES_LARGE_AND_SMALL, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert held_mib("tamed") < 8 < held_mib("untamed")


GIVES_BACK = """
import threading
import numpy as np
from pathlib import Path
from peers import runtime

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

runtime.tame_allocator()
kept, large = [], []
for _ in range(64):
    large.append(np.ones(1 << 17))  # 1 MiB, of a heap
    kept.append(bytes(50_000))  # so that it is not at the end of the heap when it is freed
del large
freed_mib = resident_mib()
runtime.give_back_freed()
for thread in threading.enumerate():
    if thread.name == "malloc-trim":
        thread.join()
print(freed_mib - resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no heaps")
def test_freed_pieces_between_those_that_stay_go_back_to_the_system() -> None:
    command = [sys.executable, "-c", GIVES_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 48


def test_garbage_is_let_go_of_and_what_was_there_at_first_is_not_looked_at_again() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    stays = [Ring() for _ in range(1000)]
    gc.disable()
    try:
        for _ in range(2):
            rings = [weakref.ref(Ring()) for _ in range(100)]
            runtime.collect_garbage()
            assert not any(ring() for ring in rings)
            assert len(gc.get_objects()) < gc.get_freeze_count()
        assert all(ring.me is ring for ring in stays)
    finally:
        gc.unfreeze()
        gc.enable()
