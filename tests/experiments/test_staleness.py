"""The twin of a swarm in one process: the production optimizer, with means that come late."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.staleness.rules import Rule, Text, Trial, rule_of
from experiments.staleness.training import Setting
from experiments.staleness.twin import Prepared, Twin
from zoonet.ranges import Ranges

ROOT = Path(__file__).parents[2]


def setting(tmp_path: Path, **fields: int) -> Setting:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be, that is the question. " * 400)
    small = {"inner_steps": 4, "delay": 0, "steps": 16, "width": 16, "num_replicas": 2}
    return Setting(text=str(text), **{**small, **fields})


async def played(one: Setting, folder: Path) -> tuple[list[bytes], list[Ranges], float]:
    prepared = Prepared(one.job(), folder)
    async with Twin.open(prepared, num_replicas=one.num_replicas, delay=one.delay) as twin:
        await twin.play()
        states = [replica.theta_P.tobytes() for replica in twin.replicas]
        return states, [replica.carried for replica in twin.replicas], await twin.loss()


@pytest.mark.parametrize("delay", [0, 3])
def test_replicas_end_bit_identical_and_every_slot_is_merged(tmp_path: Path, delay: int) -> None:
    states, carried, loss = asyncio.run(played(setting(tmp_path, delay=delay), tmp_path))
    assert states[0] == states[1]
    assert carried == [(), ()]
    assert 0 < loss < 5


def test_a_late_mean_is_another_training_than_one_that_is_waited_for(tmp_path: Path) -> None:
    found = []
    for delay in (0, 3):
        folder = tmp_path / str(delay)
        folder.mkdir()
        states, _, _ = asyncio.run(played(setting(tmp_path, delay=delay), folder))
        found.append(np.frombuffer(states[0], np.float32))
    assert np.abs(found[0] - found[1]).max() > 1e-4


def tried(tmp_path: Path, **fields: Any) -> float:
    path = tmp_path / "text.txt"
    path.write_text("to be, or not to be, that is the question. " * 400)
    torch.set_num_threads(1)
    rule = Rule(inner_steps=4, **fields)
    (loss,) = Trial(rule, Text(path, [1]), [1], steps=12, width=16).play()
    return loss


def test_a_rule_for_early_steps_changes_nothing_where_there_are_none(tmp_path: Path) -> None:
    waiting = tried(tmp_path)
    assert tried(tmp_path, kind="drop") == waiting
    assert tried(tmp_path, own=0.5, ahead=0.5) == waiting
    assert tried(tmp_path, spread=True) != waiting


def test_without_momentum_there_is_none_to_spread(tmp_path: Path) -> None:
    plain = tried(tmp_path, early=2, momentum=0.0)
    assert tried(tmp_path, early=2, momentum=0.0, spread=True) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "rule", [{"kind": "drop"}, {"kind": "gradients"}, {"own": 0.5}, {"ahead": 0.5}, {"fade": 0.5}]
)
def test_each_rule_is_another_training(tmp_path: Path, rule: dict[str, Any]) -> None:
    assert abs(tried(tmp_path, early=2, **rule) - tried(tmp_path, early=2)) > 1e-6


def test_a_rule_is_read_from_a_few_words() -> None:
    told = rule_of("early=8,momentum=0.6,spread=true")
    assert told == Rule(early=8, momentum=0.6, spread=True)
    with pytest.raises(argparse.ArgumentTypeError, match="not one of"):
        rule_of("late=1")


@pytest.mark.slow
def test_the_experiment_on_staleness_writes_a_result(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.staleness", "--smoke"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"runs": 2}
    result = json.loads((tmp_path / "staleness.json").read_text())
    assert {one["delay"] for one in result["runs"]} == {2, 8}
    assert all(0 < one["loss"] < 6 for one in result["runs"])
    assert (tmp_path / "staleness.png").stat().st_size > 0
