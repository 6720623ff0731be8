"""A laptop whose lid is closed: the round goes on without it, and it comes back by itself."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import psutil
import pytest

from peers.processes import Child
from tests.peers.real import ENDLESS, said, swarm_in

pytestmark = [pytest.mark.p2p, pytest.mark.slow]

ASLEEP_S = 30.0  # longer than anybody is waited for; connections are given up meanwhile
AWAKE_WITHIN_S = 60.0

_CERTIFIED = re.compile(r"certified round=(\d+) members=(\d+) contributors=(\d+)")


def rounds(child: Child) -> list[tuple[int, int, int]]:
    """What it logged of certified rounds: number, members, contributors."""
    found = _CERTIFIED.findall(child.log_path.read_text())
    return [(int(index), int(members), int(others)) for index, members, others in found]


def all_of(child: Child) -> list[psutil.Process]:
    process = psutil.Process(child.process.pid)
    return [process, *process.children(recursive=True)]


async def until_certified(child: Child, contributors: int, *, after: int) -> int:
    """Wait for a later round with so many contributors, and return its number."""
    while True:
        for index, _, num in rounds(child):
            if index > after and num == contributors:
                return index
        assert child.is_running
        await asyncio.sleep(0.1)


@pytest.mark.asyncio
async def test_a_peer_that_was_asleep_comes_back_and_contributes_again(scratch: Path) -> None:
    async with swarm_in(scratch, timeout_s=240) as swarm:
        _, address = await swarm.bootstrap()
        peers = [await swarm.peer(name, "--join", address) for name in ("one", "two", "three")]
        await asyncio.gather(*(said(peer, "roles=worker") for peer in peers))
        await swarm.submit(address, tokens=ENDLESS, min_peers=3)
        one, _, sleeper = peers
        last = await until_certified(one, 3, after=3)

        asleep = all_of(sleeper)
        for process in asleep:
            process.send_signal(signal.SIGSTOP)
        try:
            last = await until_certified(one, 2, after=last)
            await asyncio.sleep(ASLEEP_S)
            assert rounds(one)[-1][0] > last + 3, "the others go on without it"
        finally:
            for process in asleep:
                process.send_signal(signal.SIGCONT)
        last = rounds(one)[-1][0]
        loop = asyncio.get_running_loop()
        woken = loop.time()
        async with asyncio.timeout(AWAKE_WITHIN_S):
            index = await until_certified(one, 3, after=last)
        print(f"back after {loop.time() - woken:.1f} s, {index - last} rounds")
        await asyncio.sleep(5.0)
        assert sleeper.is_running
        assert rounds(one)[-1][1] == rounds(sleeper)[-1][1] == 3
