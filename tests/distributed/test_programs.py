"""Ordinary PyTorch programs, each rank a process of its own."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.processes import run_all, started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="zoonet-") as path:
        yield Path(path)


def test_ddp_and_pipelines_of_two_are_one_process(folder: Path) -> None:
    run_all(folder, 2, "ddp", "gpipe", "one_forward_one_backward")


def test_ddp_pipelines_and_every_function_work_with_four(folder: Path) -> None:
    stories = ("ddp", "gpipe", "one_forward_one_backward", "functions", "subgroups", "named_peers")
    run_all(folder, 4, *stories)


def test_a_killed_rank_fails_the_others_by_name_within_seconds(folder: Path) -> None:
    with started(folder, 3, "train_until_failure") as ranks:
        deadline = time.monotonic() + 60
        while not all("training" in rank.said for rank in ranks):
            assert time.monotonic() < deadline, [rank.said for rank in ranks]
            time.sleep(0.05)  # real processes: there is nothing to wait on
        ranks[1].process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert [ranks[0].ended(), ranks[2].ended()] == [0, 0], [rank.said for rank in ranks]
        took_s = time.monotonic() - killed
        for rank in (ranks[0], ranks[2]):
            assert "in DDP: RuntimeError" in rank.said
            assert "later: GroupFailed: barrier" in rank.said
            assert rank.said.count("rank 1 (peer") >= 2
        assert took_s < 20  # the processes' own end included
