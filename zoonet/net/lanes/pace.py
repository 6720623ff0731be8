"""How fast a connection sends, so that no queue stands before its line. Pure.

What waits before a line delays the acknowledgements of whatever comes the other way. Linux' BBR has
at most two products of rate and least round trip under way, so where round trips take more than
twice their least, the way with the smaller windows cannot be filled any more; its connections
measure less, and send less. Several connections on one line build such a queue within a second,
since each goes by its own best moments, which add up to more than the line.

So a connection begins with its part of the line and a little more, and more with each moment in
which round trips stay short: then the line is faster than thought, or others do not use theirs.
Where they get long it is held to its part, and then to a little less, until the queue is gone.
Where that does not go, it is not of our making, and the kernel is left alone for a while.
"""

from __future__ import annotations

import math
from typing import Final

FULL: Final = 0.2  # of the least round trip: a queue this long is to go
EMPTY: Final = 0.08
SLACK_S: Final = 0.002  # less is no queue, but noise
RISE: Final = 1.03  # of its part, that a connection begins with where there is no queue,
DOUBLED_S: Final = 1.0  # and after this time twice as much
EASE: Final = 0.005  # of its part, that it does not use while there is one,
EASE_PER_S: Final = 0.1  # and so much more with each second
PATIENCE_S: Final = 2.0  # until a queue is taken for another's
LEAVE_S: Final = 3.0  # which is left alone so long
PAUSE_S: Final = 0.5  # between two looks: a queue of ours is gone then
MOST: Final = 64.0  # parts; more than that is no limit


class Pace:
    """The pace of one connection."""

    def __init__(self) -> None:
        self._looked = self._free_until = self._since = -math.inf
        self._is_held = False

    def limit(self, now: float, rtt_s: float, least_rtt_s: float, part_bytes_per_s: float) -> float:
        """Bytes a second that may leave now; 0: as many as the kernel likes.

        `part_bytes_per_s` is the connection's part of what its line carries, 0 while unknown.
        """
        if now - self._looked > PAUSE_S:
            self._turn(now, is_held=False)
        self._looked = now
        if not part_bytes_per_s or not least_rtt_s or now < self._free_until:
            self._turn(now, is_held=False)
            return 0.0
        queue_s = rtt_s - least_rtt_s - SLACK_S
        if not self._is_held and queue_s > FULL * least_rtt_s:
            self._turn(now, is_held=True)
        elif self._is_held and queue_s < EMPTY * least_rtt_s:
            self._turn(now, is_held=False)
        elapsed_s = now - self._since
        if self._is_held and elapsed_s > PATIENCE_S:
            self._free_until = now + LEAVE_S
            return 0.0
        if self._is_held:
            return part_bytes_per_s * (1 - EASE - EASE_PER_S * elapsed_s)
        parts = RISE * 2 ** min(elapsed_s / DOUBLED_S, math.log2(MOST))
        return part_bytes_per_s * parts if parts < MOST else 0.0

    def _turn(self, now: float, *, is_held: bool) -> None:
        self._is_held, self._since = is_held, now
