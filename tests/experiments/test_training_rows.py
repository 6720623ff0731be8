"""How the training benchmark counts peers' time."""

from __future__ import annotations

import pytest

from experiments.training import accounting
from experiments.training.accelerator import Accelerator
from experiments.training.accounting import CertifiedRound, Figures
from experiments.training.trial import Outcome, back_at_work, figures_of

INF = float("inf")


class Wall:
    """A clock that moves by sleeping, and when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def accelerator(step_s: float) -> tuple[Accelerator, Wall]:
    wall = Wall()
    return Accelerator(step_s, now=wall.now, sleep=wall.sleep), wall


def test_a_step_takes_its_time_whatever_its_arithmetic_takes() -> None:
    device, wall = accelerator(0.5)
    with device.step():
        wall.sleep(0.1)
    with device.step():
        wall.sleep(0.4)
    assert device.began == [100.0, 100.5]
    assert wall.now_s == pytest.approx(101.0)
    assert device.overrun_s == 0.0


def test_a_device_hides_a_short_gap_of_its_host_and_no_longer_one() -> None:
    device, wall = accelerator(0.5)
    for gap_s in (0.004, 0.006):
        with device.step():
            pass
        wall.sleep(gap_s)
    with device.step():
        pass
    assert device.began == pytest.approx([100.0, 100.5, 101.006])


def test_a_step_that_its_machine_makes_longer_is_told_of_and_counts_as_one() -> None:
    device, wall = accelerator(0.5)
    with device.step():
        wall.sleep(0.8)
    assert device.overrun_s == pytest.approx(0.3)
    assert accounting.busy_s(device.began, device.step_s, (100.0, 101.0)) == pytest.approx(0.5)


def test_steps_at_the_edges_of_a_window_count_in_part() -> None:
    assert accounting.busy_s([0.0, 1.0, 2.0], 1.0, (0.5, 2.25)) == pytest.approx(1.75)
    assert accounting.busy_s([0.0, 5.0], 1.0, (2.0, 4.0)) == 0.0


def test_idle_time_is_laid_to_what_a_peer_was_at() -> None:
    phases = [(0.5, "waiting"), (2.0, "training"), (4.0, "averaging")]
    found = accounting.idle_by_phase([2.5, 3.5], 1.0, phases, (0.0, 6.0))
    expected = {"nothing yet": 0.5, "waiting": 1.5, "training": 0.5, "averaging": 1.5}
    assert found == pytest.approx(expected)


def test_busy_and_idle_time_make_up_the_window() -> None:
    began, window = [0.2, 0.7, 3.0, 3.5, 9.8], (0.4, 10.0)
    idle = sum(stop - start for start, stop in accounting.idle_spans(began, 0.5, window))
    assert idle + accounting.busy_s(began, 0.5, window) == pytest.approx(9.6)


def test_a_round_counts_when_the_first_peer_has_it() -> None:
    ours = {"rounds": [{"index": 0, "at": 5.0, "slots": {"0": 3, "1": 4}}]}
    theirs = {"rounds": [{"index": 0, "at": 4.0, "slots": {"0": 3, "1": 4}}]}
    (found,) = accounting.certified_rounds([ours, theirs])
    assert (found.at, found.slots, found.num_slots) == (4.0, {0: 3, 1: 4}, 7)


def test_a_rivals_round_is_put_together_from_what_each_peer_knows_of_itself() -> None:
    told = [{"rounds": [{"index": 0, "at": 5.0, "slots": {str(peer): 3}}]} for peer in (0, 1)]
    (found,) = accounting.certified_rounds(told)
    assert found.slots == {0: 3, 1: 3}


def test_time_in_which_a_peer_is_dead_is_not_asked_for() -> None:
    rounds = [CertifiedRound(0, 10.0, {0: 20, 1: 10})]
    alive = {0: [(0.0, INF)], 1: [(0.0, 2.5), (7.5, INF)]}
    step_s = {0: 0.5, 1: 0.5}
    assert accounting.goodput(rounds, step_s, alive, (0.0, 10.0)) == pytest.approx(1.0)


def test_a_round_before_the_window_is_no_part_of_it() -> None:
    rounds = [CertifiedRound(0, 10.0, {0: 20}), CertifiedRound(1, 20.0, {0: 10})]
    share = accounting.goodput(rounds, {0: 0.5}, {0: [(0.0, INF)]}, (10.0, 20.0))
    assert share == pytest.approx(0.5)


def test_unequal_peers_are_held_against_the_sum_of_their_speeds() -> None:
    rounds = [CertifiedRound(0, 8.0, {0: 16, 1: 2})]
    share = accounting.speed_share(rounds, {0: 0.5, 1: 2.0}, (0.0, 8.0))
    assert share == pytest.approx(18 / 20)


def test_who_comes_back_is_asked_how_long_it_took_until_its_first_step() -> None:
    told: dict[int, Figures] = {
        0: {"began": [1.0], "step_s": 0.5},
        1: {"began": [48.0], "step_s": 0.5, "phases": [(42.0, "joining"), (47.0, "training")]},
    }
    lives = {0: [(0.0, INF)], 1: [(0.0, 10.0), (40.0, INF)]}
    outcome = Outcome(told=told, lives=lives, num_deaths=1, asked_at=60.0, crossing_bytes=0)
    (found,) = back_at_work(outcome)
    assert (found["peer"], found["after_s"]) == (1, 8.0)
    assert found["idle_s_by_phase"] == {"nothing yet": 2.0, "joining": 5.0, "training": 1.0}


def test_a_run_is_judged_from_its_first_step_to_its_last_certificate() -> None:
    entry = {"index": 0, "at": 14.0, "slots": {"0": 3, "1": 3}}
    told: dict[int, Figures] = {
        peer: {
            "began": [10.0, 11.0, 12.0, 14.5],
            "step_s": 1.0,
            "overrun_s": 0.0,
            "rounds": [entry],
        }
        for peer in (0, 1)
    }
    lives = {peer: [(0.0, INF)] for peer in (0, 1)}
    outcome = Outcome(told=told, lives=lives, num_deaths=0, asked_at=20.0, crossing_bytes=0)
    figures = figures_of(outcome, [1.0, 1.0])
    assert figures["seconds"] == pytest.approx(4.0)
    assert figures["utilisation"] == pytest.approx(0.75)
    assert figures["certified_share"] == pytest.approx(0.75)


def test_a_run_in_which_nothing_was_trained_has_figures_too() -> None:
    told: dict[int, Figures] = {0: {"began": [], "step_s": 1.0, "overrun_s": 0.0}}
    lives = {0: [(0.0, INF)]}
    outcome = Outcome(told=told, lives=lives, num_deaths=0, asked_at=20.0, crossing_bytes=0)
    figures = figures_of(outcome, [1.0])
    assert (figures["num_rounds"], figures["utilisation"], figures["certified_share"]) == (0, 0, 0)
