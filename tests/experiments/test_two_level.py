"""The twin in sites: who averages within a site ends where one peer with the whole batch would."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.staleness.twin import Prepared
from experiments.two_level.__main__ import best, efficiency, label_of, same
from experiments.two_level.training import Setting
from experiments.two_level.twin import SitedTwin


def setting(tmp_path: Path, **changed: Any) -> Setting:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be, that is the question. " * 400)
    small = {"inner_steps": 4, "steps": 8, "width": 16, "site_sizes": (2, 2), "site_steps": 1}
    return Setting(text=str(text), **{**small, **changed})


async def played(one: Setting, folder: Path) -> tuple[list[bytes], float]:
    prepared = Prepared(one.job(), folder)
    async with SitedTwin.open(
        prepared, site_sizes=one.site_sizes, site_steps=one.site_steps
    ) as twin:
        await twin.play()
        return [replica.theta_P.tobytes() for replica in twin.replicas], await twin.loss()


def test_all_sites_end_bit_identical_and_elsewhere_than_without_means_in_them(
    tmp_path: Path,
) -> None:
    with_means, loss = asyncio.run(played(setting(tmp_path), tmp_path / "with"))
    without, _ = asyncio.run(played(setting(tmp_path, site_steps=0), tmp_path / "without"))
    assert len(set(with_means)) == len(set(without)) == 1
    assert 0 < loss < 5
    moved = np.frombuffer(with_means[0], np.float32) - np.frombuffer(without[0], np.float32)
    assert np.abs(moved).max() > 1e-5


def test_a_loss_is_worth_the_steps_in_which_ordinary_training_gets_there() -> None:
    ordinary = [(240, 2.6), (400, 2.4)]
    assert efficiency(2.5, ordinary, 400) == pytest.approx(0.8)
    assert efficiency(2.4, ordinary, 400) == 1.0
    assert efficiency(2.39, ordinary, 400) is None  # better than what was run


def test_each_contender_is_shown_at_its_best_learning_rate() -> None:
    run = {"site_sizes": [4, 4], "site_steps": 5, "batch_size": 3, "outer_momentum": 0.9}
    runs = [
        {**run, "inner_lr": 1e-3, "loss": 2.5},
        {**run, "inner_lr": 2e-3, "loss": 2.3},
        {**run, "inner_lr": 2e-3, "loss": 2.5},
    ]
    assert best(runs) == {label_of(run): (2.4, 2e-3, 2)}


def test_a_run_is_known_again_in_a_result(tmp_path: Path) -> None:
    one = setting(tmp_path)
    told = {
        **{name: getattr(one, name) for name in Setting.__dataclass_fields__},
        "text": "text.txt",
        "site_sizes": [2, 2],
    }
    assert same(one, told)
    assert not same(setting(tmp_path, seed=2), told)
