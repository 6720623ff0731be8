"""Whose turn it is to coordinate the next round, as this peer sees it. Pure; times are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zoonet.averaging.chain import Chain, coordinators
from zoonet.averaging.suspects import Suspects
from zoonet.crypto import PeerId, sha256

AVOID_S: Final = 3.0  # about what a visit to a founder takes that leads to nothing
LONGEST_AVOID_S: Final = 600.0
MAX_AVOIDED: Final = 1024
MAX_NO_PLANS: Final = 6  # in a row, before other founders are tried
TERM_S: Final = 10.0  # at each of them: to go there, and to be awaited by it
MAX_REFUSALS: Final = 8  # times that a coordinator may send this peer elsewhere, for one head


class Turns:
    """The views of the next round, or before the first one the founder to gather at.

    In the first round there is no roster that fixes an order of coordinators, and everybody
    knows of others at another time: so all keep coming back to the first whom they reach. Who
    answers there and plans nothing may lack a founder, or be a liar; nobody can tell. So after a
    while two of three terms fall to a founder that is drawn by lot, the same for everybody who
    knows the same ones, and liars cost time in proportion to their share, however they behave.
    `wanted` are the peers known to want the job; `num_needed` of them can found it.
    """

    def __init__(
        self,
        me: PeerId,
        wanted: Callable[[], set[PeerId]],
        suspects: Suspects,
        *,
        num_needed: int,
    ) -> None:
        self.view = 0
        self._me = me
        self._wanted = wanted
        self._suspects = suspects
        self._num_needed = num_needed
        self._num_refusals = 0
        self._avoided: dict[PeerId, tuple[float, float]] = {}  # end and length, in seconds
        self._is_drawing = False  # lots for the founder to gather at
        self._awaited = me  # the founder that was followed last without a plan
        self._num_no_plans = 0  # of it, in a row

    def coordinator(self, chain: Chain, now: float, unix_s: float) -> PeerId:
        """Whose turn it is in this view, or in the next one where that is a suspect's.

        `unix_s` is the same for everybody, up to some seconds.
        """
        if not chain.turns:
            return self._founder(chain.head, now, unix_s)
        order = chain.turns
        suspects = self._suspects.at(now) - {self._me}
        for _ in order:
            if order[self.view % len(order)] not in suspects:
                break
            self.view += 1
        return order[self.view % len(order)]

    def _founder(self, head: bytes, now: float, unix_s: float) -> PeerId:
        founders, term = self.founders(now), int(unix_s // TERM_S)
        # Now and then at the first one again, where newcomers go.
        if self._is_drawing and len(founders) >= self._num_needed and term % 3:
            head = sha256(head, term.to_bytes(8, "big"))
        return coordinators(head, founders)[0]

    def founders(self, now: float) -> set[PeerId]:
        """Who may found the job, without those that are passed over just now."""
        passed_over = {peer for peer, (until, _) in self._avoided.items() if until > now}
        return (self._wanted() - passed_over - self._suspects.at(now)) | {self._me}

    def start_over(self) -> None:
        """The chain has another head, and its next round has all its views before it."""
        self.view = 0
        self._num_refusals = 0

    def pass_on(self, *, is_next: bool) -> None:
        """The coordinator's turn is over; where `is_next` it is that of the next view."""
        self._num_refusals = 0
        if is_next:
            self.view += 1

    def note_refusal(self) -> None:
        """The coordinator has sent this peer elsewhere once more."""
        self._num_refusals += 1

    @property
    def has_patience(self) -> bool:
        """Tell whether it has not been done too often for this head."""
        return self._num_refusals <= MAX_REFUSALS

    def keep_to(self, founder: PeerId, now: float) -> None:
        """It is there and has no plan yet: founders gather at one peer, so nobody leaves it.

        Only in the end, and not while too few are known: then it cannot have a plan.
        """
        self._num_no_plans = self._num_no_plans + 1 if self._awaited == founder else 1
        self._awaited = founder
        if self._num_no_plans >= MAX_NO_PLANS and len(self.founders(now)) >= self._num_needed:
            self._is_drawing = True

    def avoid(self, founder: PeerId, now: float) -> None:
        """It led to nothing: go to each of the others before it, and later each time."""
        if founder == self._me:
            return
        _, length_s = self._avoided.pop(founder, (0.0, 0.0))
        first_s = AVOID_S * max(1, len(self._wanted()))
        length_s = min(LONGEST_AVOID_S, max(first_s, 2 * length_s))
        self._avoided[founder] = (now + length_s, length_s)
        if len(self._avoided) > MAX_AVOIDED:
            del self._avoided[next(iter(self._avoided))]

    def suspect(self, peer: PeerId, reason: str, now: float) -> None:
        """The peer wasted a round: it has no turn for a while. Never this peer itself."""
        if peer != self._me:
            self._suspects.note(peer, reason, now)
