"""Ranges behave as the sets of integers that they stand for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.ranges import (
    Ranges,
    count,
    difference,
    is_normal,
    normalise,
    overlaps,
    take,
    union,
)

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def members(ranges: list[tuple[int, int]] | Ranges) -> set[int]:
    return {number for start, stop in ranges for number in range(start, stop)}


@given(pairs)
def test_normal_form_keeps_the_set_and_nothing_else(ranges: list[tuple[int, int]]) -> None:
    normal = normalise(ranges)
    assert members(normal) == members(ranges)
    assert is_normal(normal)
    assert count(normal) == len(members(ranges))
    assert normalise(normal) == normal


@given(pairs, pairs)
def test_union_and_difference_are_those_of_sets(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    assert union(left, right) == normalise((n, n + 1) for n in members(left) | members(right))
    assert difference(left, right) == normalise((n, n + 1) for n in members(left) - members(right))
    assert overlaps(left, right) == bool(members(left) & members(right))


@given(pairs, st.integers(-3, 130))
def test_take_splits_off_the_smallest(ranges: list[tuple[int, int]], num: int) -> None:
    taken, rest = take(ranges, num)
    in_order = sorted(members(ranges))
    assert sorted(members(taken)) == in_order[: max(0, num)]
    assert sorted(members(rest)) == in_order[max(0, num) :]
    assert is_normal(taken) and is_normal(rest)


@pytest.mark.parametrize(
    "ranges",
    [((3, 3),), ((4, 2),), ((5, 6), (1, 2)), ((0, 2), (2, 3)), ((0, 5), (4, 9)), ((-1, 2),)],
)
def test_what_is_empty_unsorted_touching_or_negative_is_not_normal(ranges: Ranges) -> None:
    assert not is_normal(ranges)


def test_nothing_is_normal_and_empty() -> None:
    assert is_normal(()) and count(()) == 0 and difference((), ((0, 5),)) == ()


def test_a_hundred_thousand_holes_take_no_time_to_speak_of() -> None:
    """Quadratic arithmetic would take minutes here, and a stranger could ask for it."""
    evens = tuple((n, n + 1) for n in range(0, 200_000, 2))
    odds = tuple((n, n + 1) for n in range(1, 200_001, 2))
    assert difference(evens, odds) == evens
    assert difference(((0, 200_000),), odds) == evens
    assert not overlaps(evens, odds)
    assert overlaps(evens, itertools.chain(odds, [(0, 1)]))
