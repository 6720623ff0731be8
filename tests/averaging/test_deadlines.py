"""Deadlines that nobody had to guess."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zoonet.averaging.deadlines import LearnedTimeout


def learned(*durations_s: float, floor_s: float = 0.0, ceiling_s: float = 1e9) -> float:
    timeout = LearnedTimeout(first_s=15.0, floor_s=floor_s, ceiling_s=ceiling_s)
    for duration_s in durations_s:
        timeout.observe(duration_s)
    return timeout.timeout_s


def test_until_enough_was_seen_it_is_the_first_guess() -> None:
    assert learned() == learned(1.0, 1.0, 1.0) == 15.0


def test_then_it_is_the_median_and_a_margin_for_its_spread() -> None:
    assert learned(10.0, 10.0, 10.0, 10.0) == 10.0
    assert learned(8.0, 9.0, 10.0, 11.0, 12.0) == 10.0 + 8 * 1.0


def test_it_stays_between_floor_and_ceiling() -> None:
    assert learned(0.0, 0.0, 0.0, 0.0, floor_s=2.0) == 2.0
    assert learned(99.0, 99.0, 99.0, 99.0, ceiling_s=30.0) == 30.0


@given(st.lists(st.floats(0.9, 1.1), min_size=20, max_size=40), st.integers(1, 9))
def test_a_minority_of_absurd_durations_does_not_stretch_it(
    honest_s: list[float], num_absurd: int
) -> None:
    assert learned(*honest_s, *[1e6] * num_absurd) < 4.0


def test_old_durations_are_forgotten() -> None:
    assert learned(*[100.0] * 64, *[1.0] * 64) == 1.0


def test_a_clock_that_went_backwards_counts_as_no_time() -> None:
    assert learned(*[-5.0] * 8) == 0.0
