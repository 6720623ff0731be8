"""How a coordinator leads one round: a pure state machine. Events in, orders out; no clock.

::

    training --every live member is done--> averaging --certificate--> (the round ends)
       |  stragglers are told to stop          |  an attempt failed
       |  and then left out                    +--> the next attempt, without who failed it
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from zoonet.averaging.chain import has_quorum, share_of
from zoonet.averaging.messages import Attempt, Round
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, difference, is_normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a coordinator waits, in seconds or as a share of what others took."""

    straggle_share: float = 0.5  # extra training time, of the median member's
    straggle_s: float = 1.0  # and at least this much
    stop_s: float = 5.0  # for a stopped straggler to hand over what it has
    report_s: float = 1.0  # for others to report the same failure
    certify_s: float = 3.0  # for the certificate, after everyone has voted


@dataclass(frozen=True, slots=True)
class StopTraining:
    """Order: tell the member to contribute what it has."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Order: tell every follower to average with these contributors."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Order: end the round in this view; nobody is left who contributes."""

    reason: str


Order = StopTraining | StartAttempt | GiveUp


@dataclass(slots=True)
class Conductor:
    """The coordinator's view of one round. All times are in seconds of one monotonic clock."""

    round: Round
    started: float
    patience: Patience = field(default_factory=Patience)
    done: dict[PeerId, Ranges] = field(default_factory=dict)
    done_after_s: dict[PeerId, float] = field(default_factory=dict)
    lost: set[PeerId] = field(default_factory=set)
    left_out: set[PeerId] = field(default_factory=set)
    stopped: dict[PeerId, float] = field(default_factory=dict)
    attempt: Attempt | None = None
    reports: dict[PeerId, frozenset[PeerId]] = field(default_factory=dict)
    first_report: float = 0.0
    voted: set[PeerId] = field(default_factory=set)
    all_voted: float = 0.0

    def on_done(self, peer: PeerId, slots: Ranges, now: float) -> list[Order]:
        """A member's pseudo-gradient is complete. Slots that were not leased to it are ignored."""
        leased = self.round.slots_of(peer)
        if peer not in self.round.members or peer in self.done:
            return []
        if not is_normal(slots) or difference(slots, leased):
            self.left_out.add(peer)
            slots = ()
        self.done[peer] = slots
        self.done_after_s[peer] = now - self.started
        return self.on_time(now)

    def on_lost(self, peer: PeerId, now: float) -> list[Order]:
        """A member's stream ended, or it has been silent for too long."""
        self.lost.add(peer)
        if self.attempt is not None and peer in self.attempt.contributors:
            self.reports.setdefault(peer, frozenset({peer}))
            self.first_report = self.first_report or now
        return self.on_time(now)

    def on_back(self, peer: PeerId) -> None:
        """A member that was lost has opened a new stream."""
        self.lost.discard(peer)

    def on_failed(
        self, peer: PeerId, number: int, missing: Iterable[str], now: float
    ) -> list[Order]:
        """A follower cannot finish the attempt because of others."""
        if self.attempt is None or number != self.attempt.number:
            return []
        known = set(self.attempt.contributors)
        self.reports[peer] = frozenset(PeerId(name) for name in missing if name in known)
        self.first_report = self.first_report or now
        return self.on_time(now)

    def on_voted(self, peer: PeerId, number: int, now: float) -> list[Order]:
        """A follower has finished the attempt and sent out its vote."""
        if self.attempt is None or number != self.attempt.number:
            return []
        self.voted.add(peer)
        if not self.all_voted and self._live() <= self.voted:
            self.all_voted = now
        return self.on_time(now)

    def _live(self) -> set[PeerId]:
        return set(self.round.members) - self.lost

    def on_time(self, now: float) -> list[Order]:
        """Time passes: call it a few times a second."""
        if not has_quorum(len(self._live()), len(self.round.members)):
            return [GiveUp(f"{len(self.lost)} of {len(self.round.members)} members are lost")]
        if self.all_voted and now - self.all_voted > self.patience.certify_s:
            return [GiveUp("everyone has voted, but for different results")]
        if self.attempt is None:
            return self._while_training(now)
        return self._while_averaging(now)

    def _while_training(self, now: float) -> list[Order]:
        waiting = [
            peer
            for peer in self.round.members
            if peer not in self.done and peer not in self.lost and peer not in self.left_out
        ]
        if not waiting:
            return self._next_attempt(now)
        orders: list[Order] = []
        for peer in waiting:
            if peer in self.stopped:
                if now - self.stopped[peer] > self.patience.stop_s:
                    self.left_out.add(peer)
            elif self._is_straggling(now):
                self.stopped[peer] = now
                orders.append(StopTraining(peer))
        if all(peer in self.left_out for peer in waiting):
            return orders + self._next_attempt(now)
        return orders

    def _is_straggling(self, now: float) -> bool:
        if 2 * len(self.done) < len(self._live()) or not self.done:
            return False
        usual_s = statistics.median(self.done_after_s.values())
        extra_s = max(self.patience.straggle_s, self.patience.straggle_share * usual_s)
        return now - self.started > usual_s + extra_s

    def _while_averaging(self, now: float) -> list[Order]:
        if not self.reports or self._live() <= self.voted:
            return []  # nothing failed, or those who failed are gone and the others have voted
        everyone_told = self._live() <= set(self.reports) | self.voted
        if everyone_told or now - self.first_report > self.patience.report_s:
            return self._next_attempt(now)
        return []

    def _next_attempt(self, now: float) -> list[Order]:
        accused = frozenset().union(*self.reports.values()) if self.reports else frozenset()
        self.left_out |= accused
        absent = self.lost | self.left_out
        contributions = tuple(
            share_of(peer, self.done[peer])
            for peer in self.round.members
            if self.done.get(peer) and peer not in absent
        )
        if not contributions:
            return [GiveUp("nobody is left who contributes")]
        number = 0 if self.attempt is None else self.attempt.number + 1
        self.attempt = Attempt(
            job_id=self.round.job_id,
            index=self.round.index,
            view=self.round.view,
            parent=self.round.parent,
            number=number,
            contributions=contributions,
        )
        self.reports = {}
        self.first_report = 0.0
        self.voted = set()
        self.all_voted = 0.0
        return [StartAttempt(self.attempt)]
