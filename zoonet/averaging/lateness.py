"""When a peer that others wait for counts as missing. Nothing here is a timeout to guess."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence, Set
from typing import Final

from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId

FIRST_S: Final = 1.6  # of silence, while nothing is known: six beats of who waits for others
PATIENCE: Final = 4.0  # how many times as long as the others with half of the work one may take
UNBEGUN: Final = 3.0  # how many times as long who has not begun may be silent
ALONE: Final = 3.0  # how many times as long everybody together may be silent
SPARE_S: Final = 5.0  # and this much longer: a slow link is no reason to work for nothing
UNKNOWN_S: Final = 60.0  # that attempts take, while nothing is known, and the payload at this rate
UNKNOWN_BYTES_PER_S: Final = 64 * 1024


class Lateness:
    """Tells who is silent and who is late.

    Silent is a peer of whom not a byte has come for longer than is usual: the median of the
    longest silences of earlier attempts and eight of their mean deviations. Late is one that
    brings something, but takes several times as long as those took who bring half of all chunks
    together; of those from other sites, if it is in one itself. Where nobody there is left to
    compare it with, it takes several times as long as is usual.
    """

    def __init__(self, payload_bytes: int) -> None:
        first_s = UNKNOWN_S + payload_bytes / UNKNOWN_BYTES_PER_S
        self._durations = LearnedTimeout(first_s=first_s, floor_s=SPARE_S, ceiling_s=math.inf)
        self._gaps = LearnedTimeout(first_s=FIRST_S, floor_s=1.2, ceiling_s=15.0)
        self._doubt = 1.0  # grows with each accusation, until an attempt succeeds
        self._longest_gap_s = 0.0
        self._half_after_s: dict[tuple[str, bool], float] = {}

    def begin(self) -> None:
        """An attempt begins."""
        self._longest_gap_s = 0.0
        self._half_after_s = {}

    def succeed(self, elapsed_s: float) -> None:
        """It came to a mean in that time: its silences were usual ones, and so is the time."""
        self._durations.observe(elapsed_s)
        self._gaps.observe(self._longest_gap_s)
        self._doubt = 1.0

    def accuse(self) -> None:
        """Somebody was taken to be silent: if that was wrong, it must not go on for ever."""
        self._doubt = min(8.0, 2 * self._doubt)

    def silent(self, silences: dict[PeerId, float], begun: Container[PeerId]) -> set[PeerId]:
        """Of whom nothing has come for too long, by the seconds of silence of each.

        Who is not among the `begun` has sent nothing in this attempt yet: its news of it, or its
        preparation, may take longer.
        """
        self._longest_gap_s = max(self._longest_gap_s, *silences.values(), 0.0)
        limit_s = self._doubt * self._gaps.timeout_s
        limits_s = {peer: limit_s * (1.0 if peer in begun else UNBEGUN) for peer in silences}
        silent = {peer for peer, silence_s in silences.items() if silence_s > limits_s[peer]}
        if len(silent) > 1 and len(silent) == len(silences):
            # Who hears nobody at all should suspect its own machine first.
            return {peer for peer in silent if silences[peer] > ALONE * limit_s}
        return silent

    def late(self, awaited: Sequence[Awaited], elapsed_s: float, near: Set[PeerId]) -> set[PeerId]:
        """Who takes far longer than those with half of the work, `elapsed_s` after the beginning.

        Those of other sites are compared with each other alone: what comes over a local network is
        here in a moment, and says nothing of how long a line needs.
        """
        far = [one for one in awaited if one.peer not in near]
        is_unusual = elapsed_s > PATIENCE * self._durations.timeout_s
        behind_all = self._behind(awaited, elapsed_s, "all")
        behind_far = self._behind(far, elapsed_s, "far")
        return behind_far | (behind_all if is_unusual else behind_all & near)

    def _behind(self, awaited: Sequence[Awaited], elapsed_s: float, among: str) -> set[PeerId]:
        late: set[PeerId] = set()
        for is_mean in (False, True):
            group = [one for one in awaited if one.is_mean is is_mean]
            behind = {one.peer for one in group if one.num_come < one.num_all}
            num_left = sum(one.num_all for one in group if one.peer in behind)
            if not behind or 2 * num_left > sum(one.num_all for one in group):
                continue
            half_s = self._half_after_s.setdefault((among, is_mean), elapsed_s)
            for one in group:
                # Who waits for others is given the time in which somebody names the culprit.
                spare_s = SPARE_S + 2 * self._gaps.timeout_s * one.is_waiting
                limit_s = PATIENCE * half_s + spare_s
                # Who has brought half by then, or more, is given as much time again.
                is_slow = one.num_come * 2 * limit_s < one.num_all * elapsed_s
                if one.peer in behind and elapsed_s > limit_s and is_slow:
                    late.add(one.peer)
        return late
