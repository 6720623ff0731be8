"""Deadlines that are learned from what was observed, so that nobody has to guess a timeout."""

from __future__ import annotations

import statistics
from collections import deque


class LearnedTimeout:
    """How long to wait for something that has been timed before: median + k * MAD.

    Until `MIN_SAMPLES` durations were seen it is `first_s`. It never falls below `floor_s`,
    which covers a machine's own hiccups, and never exceeds `ceiling_s`.
    """

    MIN_SAMPLES = 4
    WINDOW = 64
    SPREAD = 8.0  # of median absolute deviations

    def __init__(self, *, first_s: float, floor_s: float, ceiling_s: float) -> None:
        self._first_s = first_s
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._durations_s: deque[float] = deque(maxlen=self.WINDOW)

    def observe(self, duration_s: float) -> None:
        """Take note of one duration, in seconds."""
        self._durations_s.append(max(0.0, duration_s))

    @property
    def timeout_s(self) -> float:
        """How long to wait now, in seconds."""
        if len(self._durations_s) < self.MIN_SAMPLES:
            return self._first_s
        median = statistics.median(self._durations_s)
        mad = statistics.median(abs(duration - median) for duration in self._durations_s)
        return min(self._ceiling_s, max(self._floor_s, median + self.SPREAD * mad))
