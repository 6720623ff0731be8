"""What awaited peers have brought in a window of time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zoonet.averaging.progress import MAX_LOOKS, Pace, Progress
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId

ADA, BOB = PeerId("ada"), PeerId("bob")
LONGEST_S = 8.0


def awaited(peer: PeerId, num_come: int, *, is_mean: bool = False, num_waits: int = 0) -> Awaited:
    return Awaited(peer, num_come, 10, is_mean=is_mean, num_waits=num_waits)


def looked(*looks: tuple[float, list[Awaited]], unserved: tuple[PeerId, ...] = ()) -> Progress:
    progress = Progress()
    for elapsed_s, seen in looks:
        progress.note(seen, elapsed_s, unserved, LONGEST_S)
    return progress


def test_parts_and_means_of_a_peer_are_counted_together() -> None:
    progress = looked(
        (0.0, [awaited(ADA, 1), awaited(ADA, 0, is_mean=True)]),
        (2.0, [awaited(ADA, 5), awaited(ADA, 2, is_mean=True)]),
    )
    assert progress.paces(2.0) == {ADA: Pace(6, 13, 2.0, is_held_up=False, was_away=False)}


def test_nothing_is_said_of_a_window_that_is_not_over() -> None:
    progress = looked((0.0, [awaited(ADA, 1)]), (1.9, [awaited(ADA, 1)]))
    assert progress.paces(2.0) == {}
    assert Progress().paces(0.0) == {}


def test_one_more_chunk_may_be_nearly_here() -> None:
    for num_new, num_left, at_least_s, at_most_s in (
        (0, 3, 6.0, math.inf),
        (2, 3, 2.0, 3.0),
        (0, 0, 0.0, 0.0),
        (2, 0, 0.0, 0.0),
    ):
        pace = Pace(num_new, num_left, 2.0, is_held_up=False, was_away=False)
        assert (pace.at_least_s, pace.at_most_s) == (at_least_s, at_most_s)


def test_who_has_said_lately_that_it_waits_is_held_up() -> None:
    before, after = [awaited(ADA, 1, num_waits=3)], [awaited(ADA, 2, num_waits=4)]
    assert looked((0.0, before), (2.0, after)).paces(2.0)[ADA].is_held_up
    assert not looked((0.0, after), (2.0, after)).paces(2.0)[ADA].is_held_up


def test_but_not_where_it_may_wait_for_what_has_not_left_here() -> None:
    before, after = [awaited(ADA, 1, num_waits=3)], [awaited(ADA, 2, num_waits=4)]
    assert not looked((0.0, before), (2.0, after), unserved=(ADA,)).paces(2.0)[ADA].is_held_up
    assert looked((0.0, before), (2.0, after), unserved=(BOB,)).paces(2.0)[ADA].is_held_up


def test_who_was_not_heard_meanwhile_was_away() -> None:
    progress, seen = Progress(), [awaited(ADA, 1), awaited(BOB, 1)]
    for elapsed_s, unheard in ((0.0, {ADA}), (1.0, {ADA}), (2.0, {BOB}), (3.0, ())):
        progress.note(seen, elapsed_s, (), LONGEST_S, unheard)
    assert [progress.paces(1.0)[peer].was_away for peer in (ADA, BOB)] == [False, False]
    assert [progress.paces(2.0)[peer].was_away for peer in (ADA, BOB)] == [False, True]
    assert [progress.paces(3.0)[peer].was_away for peer in (ADA, BOB)] == [True, True]


def test_and_not_where_it_owes_what_depends_on_nobody() -> None:
    before = [awaited(ADA, 1), awaited(ADA, 0, is_mean=True, num_waits=3)]
    after = [awaited(ADA, 2), awaited(ADA, 0, is_mean=True, num_waits=4)]
    assert not looked((0.0, before), (2.0, after)).paces(2.0)[ADA].is_held_up


@given(st.lists(st.integers(1, 200), min_size=2, max_size=300), st.integers(1, 64 * int(LONGEST_S)))
def test_however_often_somebody_looks_few_looks_are_kept_and_windows_are_right(
    pauses: list[int], window: int
) -> None:
    """A chunk comes with every look. Times are multiples of 1/64 s, so that sums are exact."""
    progress, num_come, now_s, at, window_s = Progress(), 0, 0.0, [], window / 64
    for pause in pauses:
        num_come, now_s = num_come + 1, now_s + pause / 64
        at.append(now_s)
        progress.note([Awaited(ADA, num_come, 10**6, False, 0)], now_s, (), LONGEST_S)
    assert len(progress._looks) <= MAX_LOOKS + 3
    paces = progress.paces(window_s)
    assert bool(paces) == (now_s - at[0] >= window_s)
    for pace in paces.values():
        assert pace.span_s >= window_s
        assert pace.num_new == sum(look_s > now_s - pace.span_s for look_s in at)
