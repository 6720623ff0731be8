"""Which chunk is asked of whom: enough ahead, nothing twice without need, nobody waited for."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.makers import peer
from zoonet.averaging.state_plan import AHEAD_S, LEAST_AHEAD, MOST_AHEAD, StatePlan

ADA, BOB, CYD = peer("ada"), peer("bob"), peer("cyd")


def take_all(plan: StatePlan, donor: str, now: float) -> list[int]:
    return list(iter(lambda: plan.take(peer(donor), now), None))


class Play:
    """A fetch from donors who send one chunk after the other, each in a time of its own."""

    def __init__(self, num_chunks: int, pace_s: dict[str, float], rtt_s: float = 0.05) -> None:
        self.plan = StatePlan(num_chunks)
        self.pace_s = pace_s
        self.rtt_s = rtt_s
        self.now = 0.0
        self.num_sent = dict.fromkeys(pace_s, 0)
        self.stalls_after: dict[str, int] = {}
        self._free_at = dict.fromkeys(pace_s, 0.0)
        self._events: list[tuple[float, int, str]] = []
        self._order = itertools.count()

    def _look(self) -> None:
        for name, pace_s in self.pace_s.items():
            while self.plan.take(peer(name), self.now) is not None:
                if self.num_sent[name] >= self.stalls_after.get(name, 10**9):
                    continue
                self.num_sent[name] += 1
                asked_at = self.now + self.rtt_s / 2
                self._free_at[name] = max(self._free_at[name], asked_at) + pace_s
                came_at = self._free_at[name] + self.rtt_s / 2
                heapq.heappush(self._events, (came_at, next(self._order), name))

    def run(self, give_up_s: float = 1000.0) -> float:
        """Return when all chunks have come."""
        look_s = 0.05
        while not self.plan.is_complete:
            assert self.now < give_up_s
            self._look()
            if self._events and self._events[0][0] <= self.now + look_s:
                self.now, _, name = heapq.heappop(self._events)
                self.plan.arrived(peer(name), self.now)
            else:
                self.now += look_s
        return self.now


def test_a_donor_is_asked_ahead_by_what_it_has_shown() -> None:
    plan = StatePlan(1000)
    assert take_all(plan, "ada", 0.0) == [0, 1]
    assert len(take_all(plan, "bob", 0.0)) == LEAST_AHEAD
    assert plan.arrived(ADA, 0.01)
    assert plan.arrived(BOB, 2.0)
    assert len(take_all(plan, "ada", 2.0)) == AHEAD_S / 0.01  # and one that was asked before
    assert len(take_all(plan, "bob", 2.0)) == 1


def test_no_donor_is_asked_for_more_than_the_most() -> None:
    plan = StatePlan(1000)
    take_all(plan, "ada", 0.0)
    plan.arrived(ADA, 0.0)
    assert len(take_all(plan, "ada", 0.0)) == MOST_AHEAD - 1


def test_what_a_lost_donor_was_asked_for_is_asked_of_another_once() -> None:
    plan = StatePlan(4)
    assert take_all(plan, "ada", 0.0) == [0, 1]
    assert take_all(plan, "bob", 0.0) == [2, 3]
    plan.lose(ADA)
    assert plan.arrived(BOB, 0.1)
    assert take_all(plan, "bob", 0.1) == [0, 1]


def test_nothing_is_asked_twice_while_nobody_is_late() -> None:
    play = Play(60, dict.fromkeys(("ada", "bob", "cyd"), 0.1))
    play.run()
    assert sum(play.num_sent.values()) <= 60 + 1


def test_equal_donors_are_busy_to_the_end() -> None:
    names = ("ada", "bob", "cyd", "dan", "eve")
    took_s = Play(256, dict.fromkeys(names, 0.1)).run()
    assert took_s <= 256 / 5 * 0.1 * 1.02 + 0.05


def test_unequal_donors_are_too() -> None:
    pace_s = {"ada": 0.05, "bob": 0.1, "cyd": 1.0}
    best_s = 300 / sum(1 / pace for pace in pace_s.values())
    assert Play(300, pace_s).run() <= best_s * 1.06 + 0.05


@pytest.mark.parametrize("after", [0, 1, 40, 99])
def test_a_donor_that_stalls_costs_little_wherever_it_stalls(after: int) -> None:
    play = Play(200, {"ada": 0.1, "bob": 0.1})
    play.stalls_after["bob"] = after
    others_s = (200 - after) * 0.1 + 0.05
    assert play.run() <= max(others_s, 100 * 0.1 + 0.05) + 3 * AHEAD_S


def test_a_chunk_that_came_from_two_counts_once() -> None:
    plan = StatePlan(1)
    assert plan.take(ADA, 0.0) == 0
    assert plan.take(BOB, 0.5) is None
    assert plan.take(BOB, 3.0) == 0
    assert plan.arrived(BOB, 3.1)
    assert not plan.arrived(ADA, 3.2)
    assert plan.is_complete
    assert plan.num_here == 1


def test_what_came_from_another_is_not_asked_again_when_its_donor_is_lost() -> None:
    plan = StatePlan(1)
    plan.take(ADA, 0.0)
    assert plan.take(BOB, 3.0) == 0
    plan.arrived(BOB, 3.1)
    plan.lose(ADA)
    assert plan.take(CYD, 10.0) is None


@given(
    st.integers(1, 60),
    st.dictionaries(
        st.sampled_from(("ada", "bob", "cyd", "dan")), st.floats(0.001, 3.0), min_size=1
    ),
    st.integers(0, 5),
)
def test_every_fetch_from_somebody_who_goes_on_sending_ends(
    num_chunks: int, pace_s: dict[str, float], after: int
) -> None:
    play = Play(num_chunks, pace_s)
    for name in sorted(pace_s)[1:]:
        play.stalls_after[name] = after
    play.run(give_up_s=2 * num_chunks * max(pace_s.values()) + 20 * num_chunks)
    assert play.plan.num_here == num_chunks
