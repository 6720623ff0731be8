"""Ranks as processes of their own, each of which ends by itself, by a failure or by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_S = 240.0  # for a rank to end


class Rank:
    """A running rank and what it has printed."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._log = log
        self._file = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def until_said(self, text: str) -> None:
        """Wait until it has printed this."""
        deadline = time.monotonic() + END_S
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)  # a real process: there is nothing to wait on

    def go_on(self) -> None:
        """Give it a line of input."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL: it says goodbye to nobody."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ended(self) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(END_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._file.close()


@contextmanager
def started(folder: Path, num_peers: int, *stories: str) -> Iterator[list[Rank]]:
    """Ranks that go through the stories one after the other; none outlives the block."""
    module = ["-m", "tests.distributed.rank", str(folder)]
    ranks = [
        Rank([*module, str(rank), str(num_peers), *stories], folder / f"{rank}.log")
        for rank in range(num_peers)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def run_all(folder: Path, num_peers: int, *stories: str) -> None:
    """Let every rank go through the stories to the end."""
    with started(folder, num_peers, *stories) as ranks:
        codes = [rank.ended() for rank in ranks]
        assert codes == [0] * num_peers, "\n".join(rank.said for rank in ranks)
        for rank in ranks:
            assert [f"{story} done" for story in stories] == rank.said.splitlines()
