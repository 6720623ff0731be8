"""Whose turn it is to coordinate the next round, as this peer sees it. Pure; times are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zoonet.averaging.chain import Chain, coordinators
from zoonet.averaging.suspects import Suspects
from zoonet.crypto import PeerId

AVOID_S: Final = 3.0  # a founder that cannot be reached is passed over for this long
MAX_NO_PLANS: Final = 8  # in a row, before another founder is tried
MAX_REFUSALS: Final = 8  # times that a coordinator may send this peer elsewhere, for one head


class Turns:
    """The views of the next round, or before the first one the founder to gather at.

    In the first round there is no roster that fixes an order of coordinators, and everybody
    knows of others at another time: so all keep coming back to the first whom they reach.
    `wanted` are the peers known to want the job.
    """

    def __init__(self, me: PeerId, wanted: Callable[[], set[PeerId]], suspects: Suspects) -> None:
        self.view = 0
        self._me = me
        self._wanted = wanted
        self._suspects = suspects
        self._num_refusals = 0
        self._avoided: dict[PeerId, float] = {}
        self._awaited = me  # the founder that was followed last without a plan
        self._num_no_plans = 0  # of it, in a row

    def coordinator(self, chain: Chain, now: float) -> PeerId:
        """Whose turn it is in this view, or in the next one where that is a suspect's."""
        order = coordinators(chain.head, chain.roster or self.founders(now))
        suspects = self._suspects.at(now) - {self._me}
        for _ in order:
            if order[self.view % len(order)] not in suspects:
                break
            self.view += 1
        return order[self.view % len(order)]

    def founders(self, now: float) -> set[PeerId]:
        """Who may found the job, without those that could not be reached a moment ago."""
        avoided = {peer for peer, until in self._avoided.items() if until > now}
        return (self._wanted() - avoided - self._suspects.at(now)) | {self._me}

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
        """Founders gather at one peer, so nobody leaves it for having to wait; only in the end."""
        self._num_no_plans = self._num_no_plans + 1 if self._awaited == founder else 1
        self._awaited = founder
        if self._num_no_plans >= MAX_NO_PLANS:
            self._num_no_plans = 0
            self.avoid(founder, now)

    def avoid(self, founder: PeerId, now: float) -> None:
        """Pass over a founder that cannot be reached."""
        self._avoided[founder] = now + AVOID_S

    def suspect(self, peer: PeerId, reason: str, now: float) -> None:
        """The peer wasted a round: it has no turn for a while. Never this peer itself."""
        if peer != self._me:
            self._suspects.note(peer, reason, now)
