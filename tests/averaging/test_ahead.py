"""Whether a peer should train on while a round is averaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.averaging.ahead import LEAST_GAIN, LOST_SHARES, lost_share, meanwhile


@pytest.mark.parametrize(("momentum", "lost"), LOST_SHARES)
def test_what_was_measured_is_what_is_lost(momentum: float, lost: float) -> None:
    assert lost_share(momentum) == pytest.approx(lost)


@given(low=st.floats(0, 0.999), high=st.floats(0, 0.999))
def test_more_momentum_loses_more_and_never_all(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert 0 < lost_share(low) <= lost_share(high) <= 1


def test_with_much_momentum_it_waits_and_with_little_it_goes_ahead() -> None:
    assert meanwhile(25, step_s=0.1, averaging_s=0.8, momentum=0.9).steps == 0
    found = meanwhile(25, step_s=0.1, averaging_s=0.8, momentum=0.6)
    assert found.steps == 8
    assert found.gain == pytest.approx((1 - 0.36 * 8 / 25) * (1 + 8 / 25) - 1)


def test_an_instant_round_is_not_worth_going_ahead() -> None:
    assert meanwhile(25, step_s=0.1, averaging_s=0.0, momentum=0.0) == (
        meanwhile(25, step_s=1.0, averaging_s=0.0, momentum=0.9)
    )
    assert meanwhile(25, step_s=0.1, averaging_s=0.0, momentum=0.0).steps == 0


@given(
    steps=st.integers(1, 1000),
    step_s=st.floats(1e-3, 10),
    averaging_s=st.floats(0, 1000),
    momentum=st.floats(0, 0.99),
)
def test_it_goes_ahead_only_where_that_gains(
    steps: int, step_s: float, averaging_s: float, momentum: float
) -> None:
    found = meanwhile(steps, step_s=step_s, averaging_s=averaging_s, momentum=momentum)
    assert 0 <= found.steps <= steps
    assert (found.steps > 0) == (found.gain >= LEAST_GAIN)


@pytest.mark.parametrize("wrong", [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, -1.0)])
def test_what_cannot_be_is_refused(wrong: tuple[int, float, float]) -> None:
    steps, step_s, averaging_s = wrong
    with pytest.raises(ValueError, match="steps of"):
        meanwhile(steps, step_s=step_s, averaging_s=averaging_s, momentum=0.5)
