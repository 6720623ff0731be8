"""Which block is asked of whom: the pure part of a fetch."""

from __future__ import annotations

from zoonet.blocks.plan import FIRST_PATIENCE_S, FetchPlan
from zoonet.crypto import PeerId

A, B = PeerId("a"), PeerId("b")


def test_a_block_is_asked_of_one_holder_at_a_time() -> None:
    plan = FetchPlan(["1", "2"], [A, B])
    assert {plan.take(A, 0.0), plan.take(B, 0.0)} == {"1", "2"}
    assert plan.take(A, 0.0) == ""


def test_a_stalled_block_is_asked_elsewhere_after_the_patience() -> None:
    plan = FetchPlan(["1"], [A, B])
    assert plan.take(A, 0.0) == "1"
    assert plan.wait_s(B, 1.0) == FIRST_PATIENCE_S - 1.0
    assert plan.take(B, 1.0) == ""
    assert plan.take(B, FIRST_PATIENCE_S) == "1"


def test_the_patience_follows_the_pace_of_arrivals() -> None:
    plan = FetchPlan(["1", "2"], [A])
    plan.take(A, 0.0)
    plan.arrived("1", A, 10.0)
    assert plan.patience_s == 40.0


def test_a_block_that_a_holder_lacks_goes_to_the_other() -> None:
    plan = FetchPlan(["1"], [A, B])
    plan.take(A, 0.0)
    plan.lacks("1", A)
    assert plan.take(A, 0.0) == ""
    assert plan.take(B, 0.0) == "1"


def test_a_block_that_nobody_has_is_unavailable() -> None:
    plan = FetchPlan(["1", "2"], [A, B])
    plan.lacks("2", A)
    assert plan.unavailable() == ""
    plan.drop(B)
    assert plan.unavailable() == "2"


def test_what_a_lost_holder_was_asked_for_is_asked_again() -> None:
    plan = FetchPlan(["1"], [A, B])
    plan.take(A, 0.0)
    plan.drop(A)
    assert plan.take(B, 0.0) == "1"
    plan.arrived("1", B, 1.0)
    assert plan.is_done
    assert plan.unavailable() == ""


def test_a_block_that_arrives_twice_is_done_once() -> None:
    plan = FetchPlan(["1"], [A, B])
    plan.take(A, 0.0)
    plan.take(B, 100.0)
    plan.arrived("1", B, 101.0)
    plan.arrived("1", A, 102.0)
    assert plan.is_done
    assert plan.take(A, 102.0) == ""
