"""When a peer that others wait for counts as missing. Nothing here is a timeout to guess."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Container, Mapping, Sequence, Set
from typing import Final

from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.plan import chunk_values
from zoonet.averaging.progress import Pace, Progress
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId

FIRST_S: Final = 1.6  # of silence, while nothing is known: six beats of who waits for others
UNBEGUN: Final = 3.0  # how many times as long who has not begun may be silent
ALONE: Final = 3.0  # how many times as long everybody together may be silent
SHORT: Final = 0.5  # of a silence that is noticed: a window's least length
QUIET_S: Final = 0.5  # without a byte: two beats of who waits for others
WINDOW_SHARE: Final = 0.25  # of an attempt so far: who was slow for that long will stay so
CLEARLY: Final = 1.5  # how many times as long waiting must take: chunks do not come evenly
AGREE_S: Final = 1.0  # until all have heard that somebody is left out, and begin anew
STALLED_S: Final = 10.0  # in which next to nothing comes of chunks that depend on nobody else
STALLED_BYTES_PER_S: Final = 1024  # which is next to nothing
WHOLE_BYTES_PER_S: Final = 8 * 1024  # where only whole chunks are told of: one takes so long more
NEW: Final = 8.0  # how many times as long as usual it may take with who has not been there before
NUM_USUAL: Final = 8  # attempts that say what is usual
UNKNOWN_S: Final = 10.0  # that attempts take, while nothing is known, and the payload at this rate
UNKNOWN_BYTES_PER_S: Final = 256 * 1024
UNKNOWN_MOST_S: Final = 600.0  # of that: half of what a whole first round may take
EXCUSED_S: Final = 30.0  # longer than usual, at most: members are patient 45 s longer than usual


class Lateness:
    """Tells who is silent and who is late.

    Silent is a peer of whom not a byte has come for longer than is usual: the median of the
    longest silences of earlier attempts and eight of their mean deviations.

    Late is one that brings something, but so slowly that a whole attempt anew without it would be
    done before. Until an attempt has lasted as long as usual nobody is: the others need that time
    as well. From then on, to go on without somebody takes until the others are done, a second to
    agree, and then at most what an attempt usually takes, since all but the lost peer's share
    stands. When somebody will be done follows from what it has brought in a window of time, which
    is half as long as a silence that is noticed, or longer. Where half a second went by in it
    without a byte of that peer its machine may have been busy, and the window is as long as a
    silence that is noticed. Usual is the median of the last attempts in
    which that peer took part: who is slow and always was is not late.

    Silent is, too, whoever says something, but brings next to nothing of its chunks for ten
    seconds, though it waits for nobody: whether anything is usual yet or not.

    Who says that it waits for others is excused, but whether it really does nobody can tell: so
    the excuse ends long before the members' patience with the whole round, and is no longer for
    who is new here than for everybody else.
    """

    def __init__(self, payload_bytes: int) -> None:
        self._first_s = min(UNKNOWN_MOST_S, UNKNOWN_S + payload_bytes / UNKNOWN_BYTES_PER_S)
        self._lasted: deque[tuple[float, Set[PeerId]]] = deque(maxlen=NUM_USUAL)
        self._repaired: deque[tuple[float, Set[PeerId]]] = deque(maxlen=NUM_USUAL)
        self._gaps = LearnedTimeout(first_s=FIRST_S, floor_s=1.2, ceiling_s=15.0)
        self._doubt = 1.0  # grows with each accusation, until an attempt succeeds
        self._longest_gap_s = 0.0
        self._progress = Progress()
        self._flow = Progress()
        self._chunk_bytes = 4 * chunk_values(max(1, payload_bytes // 4))

    def begin(self) -> None:
        """An attempt begins."""
        self._longest_gap_s = 0.0
        self._progress = Progress()
        self._flow = Progress()

    def succeed(self) -> None:
        """It came to a mean: its silences were usual ones."""
        self._gaps.observe(self._longest_gap_s)
        self._doubt = 1.0

    def lasted(self, elapsed_s: float, peers: Set[PeerId], *, is_whole: bool = True) -> None:
        """It took so long, from nothing to a mean of these; if it is not whole, in many attempts.

        A whole attempt would have taken less than all of several did. That counts only while no
        whole one is known.
        """
        (self._lasted if is_whole else self._repaired).append((elapsed_s, peers))

    def accuse(self) -> None:
        """Somebody was taken to be missing: if that was wrong, it must not go on for ever."""
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

    def stalled(
        self,
        awaited: Sequence[Awaited],
        elapsed_s: float,
        partly: Mapping[PeerId, float | None],
        *,
        unserved: Container[PeerId] = (),
        awake_s: float = math.inf,
    ) -> set[PeerId]:
        """Whose chunks do not move, though it waits for nobody. The other arguments: see `late`.

        `partly` says how many chunks of each are under way, by the shares that have come; None
        where only whole ones are told of. If most of them stall, it may be this peer's fault.
        """
        window_s = self._doubt * STALLED_S
        whole_s = window_s + self._chunk_bytes / WHOLE_BYTES_PER_S
        shares = {peer: share for peer, share in partly.items() if share is not None}
        # Here "unheard" is who may have waited for this peer at any moment of the window.
        self._flow.note(awaited, elapsed_s, unserved, whole_s, unserved, shares)
        paces = {p: pace for p, pace in self._flow.paces(window_s).items() if p in shares}
        paces |= {p: pace for p, pace in self._flow.paces(whole_s).items() if p not in shares}
        stalled = {
            peer
            for peer, pace in paces.items()
            if pace.num_left
            and not pace.was_away
            and not self._is_excused(pace, elapsed_s)
            and awake_s >= pace.span_s
            and pace.num_new * self._chunk_bytes < STALLED_BYTES_PER_S * pace.span_s
        }
        return set() if len(stalled) > 1 and 2 * len(stalled) >= len(paces) else stalled

    def late(
        self,
        awaited: Sequence[Awaited],
        elapsed_s: float,
        *,
        unserved: Container[PeerId] = (),
        unheard: Container[PeerId] = (),
        awake_s: float = math.inf,
    ) -> set[PeerId]:
        """Who is worth no more waiting, `elapsed_s` after the attempt began.

        To the `unserved` something is on its way from here, so that they may wait for just that.
        Of the `unheard` not a byte has come for `QUIET_S`.
        This process was away `awake_s` ago: what came before that is no measure.
        """
        silence_s, share_s = self._doubt * self._gaps.timeout_s, WINDOW_SHARE * elapsed_s
        short_s, long_s = max(SHORT * silence_s, share_s), max(silence_s, share_s)
        self._progress.note(awaited, elapsed_s, unserved, long_s, unheard)
        paces = self._progress.paces(short_s) if awake_s >= short_s else {}
        longer = self._progress.paces(long_s) if awake_s >= long_s else {}
        paces = {peer: pace for peer, pace in paces.items() if not pace.was_away} | {
            peer: longer[peer] for peer, pace in paces.items() if pace.was_away and peer in longer
        }
        judged = {p: pace for p, pace in paces.items() if not self._is_excused(pace, elapsed_s)}
        late = set()
        for peer, pace in judged.items():
            others_s = [other.at_most_s for other in judged.values() if other is not pace]
            usual_s = self._usual_s(peer)
            without_s = statistics.median_high(others_s or [0.0]) + AGREE_S
            without_s += min(usual_s, self._usual_of_all_s())
            if elapsed_s > usual_s and pace.at_least_s > CLEARLY * without_s:
                late.add(peer)
        return late

    def _is_excused(self, pace: Pace, elapsed_s: float) -> bool:
        """It waits for others, and there is still time for somebody to name the culprit."""
        return pace.is_held_up and elapsed_s < self._excused_s()

    def _excused_s(self) -> float:
        """The same for all. While nothing is known, nobody is late before the first allowance."""
        usual_s = self._usual_of_all_s()
        return min(ALONE * (AGREE_S + 2 * usual_s), usual_s + EXCUSED_S)

    def _usual_of_all_s(self) -> float:
        if self._lasted:
            return statistics.median_low(elapsed_s for elapsed_s, _ in self._lasted)
        return min([self._first_s, *(elapsed_s for elapsed_s, _ in self._repaired)])

    def _usual_s(self, peer: PeerId) -> float:
        lasted = [elapsed_s for elapsed_s, peers in self._lasted if peer in peers]
        if lasted:
            return statistics.median_low(lasted)  # of two the shorter: first ones open lanes
        if self._lasted:
            return NEW * statistics.median_low(elapsed_s for elapsed_s, _ in self._lasted)
        repaired = [(1.0 if peer in peers else NEW) * s for s, peers in self._repaired]
        return min([self._first_s, *repaired])
