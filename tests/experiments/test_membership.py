"""The membership experiment starts, ends and writes a valid result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments.membership import __main__ as experiment
from experiments.membership.simulate import Simulation
from experiments.membership.world import World


def test_the_smoke_run_writes_a_result_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "membership.json"
    monkeypatch.setattr(sys, "argv", ["experiment", "--smoke", "--out", str(out)])
    experiment.main()
    result = json.loads(out.read_text())
    (run,) = result["simulated"]
    assert run["num_peers"] == 60
    assert run["found_share"] >= 0.999
    assert run["bytes_per_s_mean"] < 2000
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "round trips p99" in capsys.readouterr().out


def test_a_seed_names_one_run() -> None:
    world = World(num_peers=40, num_jobs=4, warmup_s=20, duration_s=60, churn_per_h=6.0, seed=3)
    first, second = Simulation(world).run(), Simulation(world).run()
    for name in ("bytes_per_s_mean", "num_lookups", "found_share", "calls_per_peer_s"):
        assert first[name] == second[name]
    assert first["found_share"] > 0.98
