"""Connections keep to the pace of their line, so that the two ways of it do not starve each other.

The model: what one end sends waits before its way of the line, and acknowledgements wait with it.
Senders are like Linux' BBR, which goes by the most that it has seen in ten round trips, tries for a
quarter more now and then, and has two products of rate and least round trip under way at most.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest

from zoonet.net.lanes.line import NUM_SAMPLES, SAMPLE_S, Samples
from zoonet.net.lanes.pace import LEAVE_S, PATIENCE_S, PAUSE_S, Pace

RATE = 12e6  # bytes a second, each way
RTT_S = 0.05
STEP_S = 0.001
LOOK_S = 0.02  # of a connection at its pace
NUM_CONNECTIONS = 4  # each way
LOOK_STEPS = 50  # of whoever meters the line
GAINS = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

Limit = Callable[[float, float, float, float], float]


class Connection:
    """A sender like BBR."""

    def __init__(self, bytes_per_s: float, limit: Limit, luck: random.Random) -> None:
        self.under_way: deque[tuple[float, float]] = deque()  # when it is acknowledged, and bytes
        self.in_flight = self.acked = 0.0
        self.rtt_s = RTT_S
        self._limit = limit
        self._luck = luck
        self._seen = deque([bytes_per_s] * 10, maxlen=10)
        self._round_acked = self._round_began = 0.0
        self._phase = luck.randrange(2, 8)
        self._looked = -1.0
        self._paced_at = 0.0

    def step(self, now: float, room: float, part: float) -> float:
        """Bytes that leave now."""
        while self.under_way and self.under_way[0][0] <= now:
            num_bytes = self.under_way.popleft()[1]
            self.in_flight -= num_bytes
            self.acked += num_bytes
        elapsed_s = now - self._round_began
        if elapsed_s > self.rtt_s:
            measured = (self.acked - self._round_acked) / elapsed_s
            if self._round_acked:  # acknowledgements come in clumps
                self._seen.append(measured * self._luck.uniform(0.95, 1.1))
            self._round_acked, self._round_began = self.acked, now
            self._phase = (self._phase + 1) % len(GAINS)
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._paced_at = self._limit(now, self.rtt_s, RTT_S, part)
        believed = max(self._seen)
        pace = 0.99 * GAINS[self._phase] * believed
        if self._paced_at:
            pace = min(pace, self._paced_at)
        num_bytes = min(pace * STEP_S, room, 2 * believed * RTT_S - self.in_flight)
        return max(0.0, num_bytes)

    def sends(self, now: float, num_bytes: float, rtt_s: float) -> None:
        """They are acknowledged after a round trip."""
        self.in_flight += num_bytes
        last = self.under_way[-1][0] if self.under_way else 0.0
        self.under_way.append((max(last, now + rtt_s), num_bytes))
        self.rtt_s += (rtt_s - self.rtt_s) / 50


class Ways:
    """The two ways of a line between two ends that both send all the time."""

    def __init__(self, believed: tuple[float, float], make_limit: Callable[[], Limit]) -> None:
        luck = random.Random(1)
        self.ways = [
            [Connection(part / NUM_CONNECTIONS, make_limit(), luck) for _ in range(NUM_CONNECTIONS)]
            for part in believed
        ]
        self.metered = [Samples(), Samples()]
        for samples, part in zip(self.metered, believed, strict=True):
            for _ in range(NUM_SAMPLES):
                samples.add(int(part * SAMPLE_S), SAMPLE_S)
        self.queues = [0.0, 0.0]

    @property
    def rtt_s(self) -> float:
        return RTT_S + sum(self.queues) / RATE

    def acked(self, way: int) -> float:
        return sum(one.acked for one in self.ways[way])

    def step(self, now: float) -> None:
        """A millisecond passes. Each end knows what it sends and what it gets."""
        rtt_s, part = self.rtt_s, max(one.bytes_per_s for one in self.metered) / NUM_CONNECTIONS
        for way in (0, 1):
            room = 2 * RATE * RTT_S - self.queues[way]
            sent = 0.0
            for one in self.ways[way]:
                num_bytes = one.step(now, room, part)
                one.sends(now, num_bytes, rtt_s)
                sent += num_bytes
            self.queues[way] = max(0.0, self.queues[way] + sent - RATE * STEP_S)


def use_of_both_ways(
    make_limit: Callable[[], Limit], believed: tuple[float, float] = (RATE, RATE)
) -> tuple[float, float]:
    """How much of each way is used in six seconds, when their rates were believed to be so."""
    line, seen = Ways(believed, make_limit), [0.0, 0.0]
    for number in range(6000):
        line.step(number * STEP_S)
        if number % LOOK_STEPS == 0:
            for way in (0, 1):
                acked = line.acked(way)
                line.metered[way].add(int(acked - seen[way]), LOOK_STEPS * STEP_S)
                seen[way] = acked
    most = RATE * (6.0 - RTT_S)
    return line.acked(0) / most, line.acked(1) / most


def unpaced() -> Limit:
    return lambda *_: 0.0


def paced() -> Limit:
    return Pace().limit


def test_without_a_pace_one_way_starves_the_other() -> None:
    assert min(use_of_both_ways(unpaced)) < 0.94


@pytest.mark.parametrize(
    "believed", [(1.0, 1.0), (1.03, 0.97), (0.93, 1.0), (1.1, 1.1), (0.9, 0.9)]
)
def test_both_ways_of_a_line_are_used_at_once(believed: tuple[float, float]) -> None:
    """What is believed may be wrong by some percent: it is what has been measured."""
    assert min(use_of_both_ways(paced, (believed[0] * RATE, believed[1] * RATE))) > 0.96


def test_a_line_that_is_faster_than_believed_is_soon_used() -> None:
    assert min(use_of_both_ways(paced, (RATE / 2, RATE / 2))) > 0.75


def test_a_connection_is_held_while_a_queue_stands_and_no_longer() -> None:
    pace, part = Pace(), 1e6
    assert part < pace.limit(0.0, RTT_S, RTT_S, part) < 1.1 * part
    assert pace.limit(0.1, 1.5 * RTT_S, RTT_S, part) < part
    assert pace.limit(0.2, 1.15 * RTT_S, RTT_S, part) < part  # until it has gone
    assert part < pace.limit(0.3, 1.05 * RTT_S, RTT_S, part) < 1.1 * part
    assert pace.limit(0.7, 1.05 * RTT_S, RTT_S, part) > 1.2 * part


def test_where_no_queue_comes_there_is_soon_no_limit() -> None:
    pace, limits = Pace(), []
    for number in range(100):
        limits.append(pace.limit(0.1 * number, RTT_S, RTT_S, 1e6))
    assert limits[0] and not limits[-1]


def test_a_queue_that_does_not_go_is_left_to_others_for_a_while() -> None:
    pace, times = Pace(), [0.1 * number for number in range(200)]
    held = [now for now in times if pace.limit(now, 2 * RTT_S, RTT_S, 1e6)]
    assert held[0] == 0.0
    gaps = [(a, b) for a, b in pairwise(held) if b - a > 0.15]
    began, ended = gaps[0]
    assert began == pytest.approx(PATIENCE_S, abs=0.2)
    assert ended == pytest.approx(PATIENCE_S + LEAVE_S, abs=0.3)


def test_a_queue_from_before_a_pause_has_gone() -> None:
    pace = Pace()
    assert pace.limit(0.0, 2 * RTT_S, RTT_S, 1e6) < 1e6
    assert pace.limit(1.1 * PAUSE_S, 1.15 * RTT_S, RTT_S, 1e6) > 1e6


def test_nobody_is_held_to_what_is_not_known() -> None:
    assert Pace().limit(0.0, 2 * RTT_S, RTT_S, 0.0) == 0.0
    assert Pace().limit(0.0, 0.0, 0.0, 1e6) == 0.0
