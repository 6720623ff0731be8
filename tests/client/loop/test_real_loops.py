"""Loops as real processes over libp2p, one of which is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.peers.real import swarm_in

ROOT = Path(__file__).parents[3]
STEPS = 3000


class Loop:
    """A running loop and what it has printed."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        self._files = (log.open("wb"), log.with_suffix(".err").open("wb"))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-u", *arguments],
            stdout=self._files[0],
            stderr=self._files[1],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def said(self, key: str) -> list[dict[str, object]]:
        """The complete lines with this key."""
        lines = self.log.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, lines) if key in line]

    @property
    def errors(self) -> str:
        return self.log.with_suffix(".err").read_text()

    async def until_rounds(self, num_rounds: int) -> None:
        while len(self.said("round")) < num_rounds:
            assert self.process.poll() is None, self.errors
            await asyncio.sleep(0.05)

    async def ended(self) -> dict[str, object]:
        assert await asyncio.to_thread(self.process.wait) == 0, self.errors
        return self.said("final")[0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in self._files:
            file.close()


@contextmanager
def looping(folder: Path) -> Iterator[object]:
    with ExitStack() as stack:

        def start(name: str, address: str, seed: int) -> Loop:
            arguments = ["-m", "tests.client.loop.looping", address, str(seed), str(STEPS)]
            loop = Loop(arguments, folder / f"{name}.log")
            stack.callback(loop.close)
            return loop

        yield start


@pytest.mark.p2p
@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_loop_that_is_killed_and_comes_back_costs_nothing_but_its_time(
    tmp_path: Path,
) -> None:
    async with swarm_in(_made(tmp_path / "swarm")) as swarm:
        _, address = await swarm.bootstrap()
        with looping(tmp_path) as start:
            ada, bob = start("ada", address, 1), start("bob", address, 2)
            await bob.until_rounds(3)
            family = psutil.Process(bob.process.pid).children(recursive=True)
            bob.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(psutil.wait_procs, family, timeout=120)
            assert not any(process.is_running() for process in family)
            again = start("again", address, 3)
            ends = [await ada.ended(), await again.ended()]
            assert ends[0]["final"] == ends[1]["final"]
            assert ends[0]["slots"] == list(range(STEPS))
            told = {line["round"]: line["outer"] for line in ada.said("round")}
            shared = [line for line in bob.said("round") if line["round"] in told]
            assert shared and all(told[line["round"]] == line["outer"] for line in shared)
            assert again.said("round"), "it came too late to take part"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
