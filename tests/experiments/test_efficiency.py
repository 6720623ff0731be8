"""The race against centralised training and rivals: what is missing, what it is worth, how long."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.efficiency import table, wall
from experiments.efficiency.contenders import (
    RATES,
    Contender,
    Scale,
    Setting,
    contenders_of,
    job_of,
)
from experiments.efficiency.table import Reached, best_rate, missing, next_rate, tokens_to, worths
from experiments.efficiency.tokens import CURVE_POINTS, DelayedSession, course, run
from experiments.efficiency.wall import Line, Measured, Pace
from experiments.staleness.twin import Prepared
from zoonet.training.session import TrainingSession

ROOT = Path(__file__).parents[2]
TINY = Scale(steps=50, batch_size=1, num_layers=1, width=16, context=16)


def entry(contender: str, loss: float | None, **changed: Any) -> dict[str, Any]:
    made = {"contender": contender, "num_peers": 8, "inner_lr": 4e-3, "share": 1.0, "seed": 1}
    made |= {"tokens": 1000.0, "loss": loss, **changed}
    return made | {"curve": [] if loss is None else [(made["tokens"], loss)]}


def swept(contender: str, loss: float) -> list[dict[str, Any]]:
    """A sweep that is over, whose best rate is 4e-3."""
    return [entry(contender, loss + abs(rate - 4e-3), inner_lr=rate) for rate in RATES]


# --- what is missing ------------------------------------------------------------------------------


def test_a_sweep_goes_on_beyond_the_end_that_is_best_and_no_further() -> None:
    rising = dict(zip(RATES, (2.0, 2.1, 2.2, 2.3), strict=True))
    assert next_rate({}) == RATES[0]
    assert next_rate(rising) == RATES[0] / 2
    assert next_rate(rising | {RATES[0] / 2: 2.5}) is None
    assert next_rate(dict(zip(RATES, (2.3, 2.2, 2.1, 2.0), strict=True))) == RATES[-1] * 2
    falling_for_ever = {2.0**-n: float(n) for n in range(table.MAX_RATES)}
    assert next_rate(dict.fromkeys(RATES, 3.0) | falling_for_ever) is None


def test_training_that_came_to_no_number_wins_no_sweep() -> None:
    runs = swept("twin", 2.0)
    runs[2] = entry("twin", None, inner_lr=4e-3)
    assert best_rate(runs, "twin", 8) == 2e-3


def test_a_command_that_was_interrupted_goes_on_with_what_is_missing() -> None:
    contenders = (Contender(name="twin", shares=(0.5,)), Contender(name="diloco", sites=(1,) * 8))
    found: list[dict[str, Any]] = []
    seen: list[Setting] = []
    for _ in range(100):
        following = missing(found, contenders, 8, seeds=2)  # knows nothing but the entries
        if following is None:
            break
        assert following not in seen
        seen.append(following)
        found.append({**asdict(following), "loss": abs(following.inner_lr - 2e-3)})
    assert len(seen) == 2 * len(RATES) + 1 + 3
    assert [(one.contender, one.share, one.seed) for one in seen[-4:]] == [
        ("diloco", 1.0, 1),
        ("twin", 1.0, 2),
        ("twin", 0.5, 2),
        ("diloco", 1.0, 2),
    ]
    assert {one.inner_lr for one in seen if one.seed == 2 or one.share < 1} == {2e-3}


# --- what entries say -----------------------------------------------------------------------------


def test_tokens_to_a_loss_are_found_between_lengths_in_the_logarithm() -> None:
    points = [(400.0, 2.0), (100.0, 3.0)]  # 200 lie half-way in the logarithm
    assert tokens_to(points, 2.5) == Reached(200.0)
    assert tokens_to(points, 2.0) == Reached(400.0)
    assert tokens_to(points, 3.0) == Reached(100.0)
    assert tokens_to(points, 3.1) == Reached(100.0, is_bound=True)
    assert tokens_to(points, 1.9) is None
    assert tokens_to([], 2.0) is None


def test_a_length_that_diverged_is_a_bound_and_no_point_to_interpolate_from() -> None:
    assert tokens_to([(100.0, math.inf), (400.0, 2.0)], 2.5) == Reached(400.0, is_bound=True)


def test_the_best_of_all_rates_and_lengths_counts_at_each_number_of_tokens() -> None:
    runs = [entry("twin", 2.0), entry("twin", 2.3, inner_lr=8e-3), entry("twin", 2.0, seed=2)]
    runs[0]["curve"] = [(100, 2.9), (500, 2.5), (1000, 2.0)]
    runs[1]["curve"] = [(200, 2.6), (500, 2.4), (1000, 2.3)]
    assert table.points_of(runs, "twin", 8, 1) == [(100, 2.9), (200, 2.6), (500, 2.4), (1000, 2.0)]


def test_worth_is_the_share_of_tokens_that_the_better_twin_needs() -> None:
    runs = [
        *swept("twin", 2.0),
        entry("twin", 2.4, share=0.5, tokens=500.0),
        *swept("twin, batch/4", 1.9),
        entry("twin, batch/4", 2.2, share=0.3, tokens=250.0),
        *swept("diloco", 2.2),
    ]
    found = {worth.contender: worth for worth in worths(runs, 8)}
    (same,) = found["diloco"].of_same_batch
    assert same == pytest.approx(math.sqrt(0.5))
    assert found["diloco"].of_best == (0.25,)
    assert found["diloco"].num_bounds == found["diloco"].num_better == 0
    assert found["twin"].of_same_batch == (1.0,)
    assert set(found) == {"twin", "twin, batch/4", "diloco"}


def test_worth_beyond_what_twins_were_run_for_is_told_as_a_bound() -> None:
    base = [*swept("twin", 2.0), entry("twin", 2.4, share=0.5, tokens=500.0)]
    (_, below) = worths([*base, *swept("diloco", 2.5)], 8)
    (_, beyond) = worths([*base, *swept("diloco", 1.9)], 8)
    assert (below.of_best, below.num_bounds) == ((0.5,), 1)
    assert (beyond.of_best, beyond.num_better, beyond.of_same_batch) == ((1.0,), 1, ())


# --- time -----------------------------------------------------------------------------------------


def line(**measured: Measured) -> Line:
    names = {name.replace("__", "-"): one for name, one in measured.items()}
    return Line("one.json", "20 Mbit/s", 0.4, 25, names)


def test_the_parts_of_a_run_are_read_from_results_of_real_peers(tmp_path: Path) -> None:
    rounds = [{"at_s": at, "slots": [25]} for at in (14.0, 26.0, 38.0)]
    more = {"num_rounds": 3, "rounds": rounds, "utilisation": 0.8, "certified_share": 0.4}
    runs = [
        {"case": "20 Mbit/s", "contender": "zoonet_training-int8", "why_not": "", "more": more},
        {"case": "20 Mbit/s", "contender": "hivemind_diloco", "why_not": "link: no", "more": {}},
    ]
    path = tmp_path / "training-utilisation.json"
    path.write_text(json.dumps({"settings": {"step_s": 0.4, "inner_steps": 25}, "runs": runs}))
    (found,) = wall.lines_of([path])
    assert found.measured == {"zoonet_training-int8": Measured(12.0, 0.8, 0.5, num_runs=1)}
    path.write_text(json.dumps({"settings": {}, "runs": runs[1:]}))
    assert wall.lines_of([path]) == []


def test_e_is_the_product_of_its_parts() -> None:
    runs = [
        *swept("twin", 2.0),
        entry("twin", 2.4, share=0.25, tokens=250.0),
        *swept("diloco", 2.2),
    ]
    peers = line(zoonet_training__int8=Measured(11.0, 0.9, 0.8, num_runs=3))
    (one,) = wall.efficiencies(runs, 8, [peers])
    assert (one.contender, one.measured_as) == ("diloco", "zoonet_training-int8")
    assert one.token_efficiency == pytest.approx(0.5)
    assert one.whole == pytest.approx(0.5 * 0.9 * 0.8)


def test_a_delayed_step_takes_the_longer_of_computing_and_averaging() -> None:
    assert wall.step_time_s(5, 0.4, 3.0, is_delayed=False) == pytest.approx(5.0)
    assert wall.step_time_s(5, 0.4, 3.0, is_delayed=True) == pytest.approx(3.0)
    assert wall.step_time_s(10, 0.4, 3.0, is_delayed=True) == pytest.approx(4.0)


def test_rivals_race_at_their_quickest_setting_and_by_what_was_measured_of_them() -> None:
    runs = [
        *swept("twin", 2.0),
        entry("twin", 2.4, share=0.25, tokens=250.0),
        *swept("diloco", 2.2),
        *swept("synchronous, batch x5", 2.3),
    ]
    peers = line(
        zoonet_training__int8=Measured(12.5, 0.8, 1.0, 1),
        hivemind_diloco=Measured(25.0, 0.4, 1.0, 1),
        hivemind_optimizer__sync=Measured(14.0, 0.7, 1.0, 1),
    )
    found = {one.family: one for one in wall.races(runs, 8, [peers], step_tokens=10)}
    assert set(found) == {"centralised", "hivemind.Optimizer", "OpenDiLoCo-style"}
    assert found["OpenDiLoCo-style"].ratio == pytest.approx(2.0)
    assert found["centralised"].ratio == pytest.approx(0.5 * 0.8)
    synchronous = found["hivemind.Optimizer"]  # 500 tokens in steps of 10, each 0.4 + 4 s
    assert synchronous.rival == "hivemind.Optimizer, synchronous, batch x1"
    assert synchronous.rival_s == pytest.approx(50 * 4.4)
    assert not synchronous.bound


def test_who_does_not_come_to_the_loss_is_slower_by_at_least_its_longest_run() -> None:
    runs = [*swept("diloco", 2.2), *swept("synchronous, batch x5", 2.3)]
    ours = Pace("diloco", "ours", "diloco", "", 100.0)
    rival = Pace("rival", "hivemind.Optimizer", "synchronous, batch x5", "", 50.0)
    found = wall.race(runs, 8, line(), ours, rival)
    assert found is not None
    assert found.ratio == pytest.approx(2.0)
    assert found.bound == "at least"


# --- training -------------------------------------------------------------------------------------


def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("to be, or not to be, that is the question. " * 400)
    return str(path)


@pytest.mark.parametrize("num_peers", [8, 24])
def test_all_contenders_train_on_as_many_tokens(num_peers: int) -> None:
    jobs = [
        job_of(Setting(contender=one.name, num_peers=num_peers, inner_lr=1e-3), Scale(), "t")
        for one in contenders_of(num_peers)
    ]
    assert len({job.training_config.tokens for job in jobs}) == 1
    assert len({one.name for one in contenders_of(num_peers)}) == len(jobs)


def test_a_round_holds_as_many_tokens_with_a_smaller_batch() -> None:
    setting = Setting(contender="diloco, batch/3", num_peers=8, inner_lr=1e-3)
    smaller = job_of(setting, Scale(), "t").training_config
    usual = job_of(replace(setting, contender="diloco"), Scale(), "t").training_config
    assert (smaller.batch_size, smaller.inner_steps) == (1, 75)
    assert (usual.batch_size, usual.inner_steps) == (3, 25)


@pytest.mark.parametrize(
    "name", ["twin", "diloco, 2 early", "two levels, every 5", "delayed, batch x5"]
)
def test_an_entry_holds_the_whole_course_of_a_training(tmp_path: Path, name: str) -> None:
    setting = Setting(contender=name, num_peers=8, inner_lr=4e-3)
    done: list[float] = []
    found = run(setting, TINY, text(tmp_path), done.append)
    tokens = [at for at, _ in found["curve"]]
    assert tokens == sorted(tokens)
    assert tokens[-1] == found["tokens"] == 50 * 8 * 16
    assert 1 < len(tokens) <= CURVE_POINTS
    assert 0 < found["loss"] < 5
    assert done == sorted(done)
    assert done[-1] < 1


@pytest.mark.parametrize("name", ["twin", "diloco"])
def test_training_that_comes_to_no_number_has_no_loss(tmp_path: Path, name: str) -> None:
    setting = Setting(contender=name, num_peers=8, inner_lr=10.0)
    job = job_of(setting, TINY, text(tmp_path))
    exploding = replace(job.training_config, weight_decay=1000.0)  # each step times -9999
    told = course(replace(job, training_config=exploding), setting.find(), lambda _: None)
    assert told == []


def test_a_delayed_step_follows_the_gradient_of_the_slot_before(tmp_path: Path) -> None:
    setting = Setting(contender="delayed, batch x1", num_peers=8, inner_lr=4e-3)
    prepared = Prepared(job_of(setting, TINY, text(tmp_path)), tmp_path)
    inner_N = np.empty(2 * prepared.initial_P.size + 1, np.float32)

    def after(session: TrainingSession, slots: list[int]) -> bytes:
        theta_P = prepared.initial_P.copy()
        with session:
            session.begin(theta_P, None)
            for slot in slots:
                session.step(slot, 0.5)
            session.finish_round(theta_P, inner_N)
        return theta_P.tobytes()

    assert after(DelayedSession(prepared.start), [3]) == prepared.initial_P.tobytes()
    one_late = after(DelayedSession(prepared.start), [3, 7])
    assert one_late == after(TrainingSession(prepared.start), [3])


@pytest.mark.slow
def test_the_experiment_writes_a_result_and_goes_on_from_it(tmp_path: Path) -> None:
    out = tmp_path / "efficiency.json"

    def ended(*more: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.efficiency", "--smoke", "--out", str(out), *more],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    first = ended("--minutes", "0.02")["runs"]
    assert 0 < first < 10
    before = json.loads(out.read_text())["runs"]
    assert ended()["runs"] > 15
    result = json.loads(out.read_text())
    assert result["runs"][: len(before)] == before
    assert {one["contender"] for one in result["token_efficiency"]} >= {"twin", "diloco, 2 early"}
    assert out.with_suffix(".png").stat().st_size > 1000
