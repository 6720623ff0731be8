"""Ordinary PyTorch programs, each rank a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.pipeline.train import Plan, losses_of_one_process
from tests.distributed.processes import run_all, started

pytestmark = pytest.mark.slow  # most of it is starting processes that import torch


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="zoonet-") as path:
        yield Path(path)


def test_ddp_fsdp_pipelines_of_two_and_four_and_every_function_work(folder: Path) -> None:
    programs = ("ddp", "fsdp", "gpipe", "one_forward_one_backward")
    run_all(folder, 4, *programs, "functions", "subgroups", "named_peers")


def test_a_killed_rank_fails_the_others_by_name_within_seconds(folder: Path) -> None:
    with started(folder, 3, "train_until_failure") as ranks:
        for rank in ranks:
            rank.until_said("training")
        ranks[1].kill()
        killed = time.monotonic()
        assert [ranks[0].ended(), ranks[2].ended()] == [0, 0], [rank.said for rank in ranks]
        took_s = time.monotonic() - killed
        for rank in (ranks[0], ranks[2]):
            assert "in DDP: RuntimeError" in rank.said
            assert "later: GroupFailed: barrier" in rank.said
            assert rank.said.count("rank 1 (peer") >= 2
        assert took_s < 30  # the processes' own end included


def test_a_pipeline_that_loses_two_peers_trains_on_with_not_a_bit_changed(folder: Path) -> None:
    with started(folder, 4, "pipeline_that_survives") as ranks:
        ranks[3].until_said("step 25 ")
        ranks[1].kill()
        ranks[3].go_on()
        ranks[3].until_said("step 45 ")
        ranks[3].kill()
        assert [ranks[0].ended(), ranks[2].ended()] == [0, 0], [rank.said for rank in ranks]
        told = [rank.said for rank in ranks]
    losses = {}
    for said in (told[3], told[2]):  # the last stage first lay with rank 3, then with rank 2
        for line in said.splitlines():
            if line.startswith("step"):
                _, step, _, loss = line.split()
                losses[int(step)] = float.fromhex(loss)
    assert told[0].count("recovered to step 20") == told[0].count("recovered to step 40") == 1
    expected = losses_of_one_process(Plan(num_steps=60))
    assert [losses[step] for step in range(60)] == expected
