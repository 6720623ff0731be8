"""How a coordinator leads one round: a pure state machine. Events in, orders out; no clock.

::

    training --every live member is done--> averaging --certificate--> (the round ends)
       |  stragglers are told to stop          |  an attempt failed, or gave different results
       |  and then left out                    +--> the next attempt, without who failed it
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zoonet.averaging.blame import Pair, differing, to_leave_out
from zoonet.averaging.chain import has_quorum, share_of
from zoonet.averaging.config import Patience
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import MAX_RANGES, Attempt, Failure, Round, Share, Voted
from zoonet.averaging.plan import Plan, givers_in, repair
from zoonet.averaging.planner import make_plan
from zoonet.averaging.rules import SPARE_ATTEMPTS, is_failure_in
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, difference, is_normal


@dataclass(frozen=True, slots=True)
class StopTraining:
    """Order: tell the member to contribute what it has."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Order: tell every follower to average with these contributors."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class AskWhy:
    """Order: results differ; ask every follower for the digests of its slices."""

    number: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Order: end the round in this view. `suspects` kept it from its certificate."""

    reason: str
    suspects: frozenset[PeerId] = frozenset()


Order = StopTraining | StartAttempt | AskWhy | GiveUp


@dataclass(slots=True)
class Conductor:
    """The coordinator's view of one round. All times are in seconds of one monotonic clock.

    `me` is the coordinator itself, whose own word counts where two others contradict each other.
    `usual_s` is how long its own lease should take it, 0 while unknown: nobody is a straggler
    before that, whatever others say that they have done.
    """

    round: Round
    started: float
    me: PeerId
    patience: Patience = field(default_factory=Patience)
    usual_s: float = 0.0
    num_values: int = 1  # P
    links: Mapping[PeerId, PeerLinks] = field(default_factory=dict)
    done: dict[PeerId, Ranges] = field(default_factory=dict)
    roots: dict[PeerId, bytes] = field(default_factory=dict)
    begun: set[PeerId] = field(default_factory=set)  # who has trained anything
    all_done: float | None = None  # since when no member is waited for
    failures: dict[PeerId, Failure] = field(default_factory=dict)
    done_after_s: dict[PeerId, float] = field(default_factory=dict)
    lost: set[PeerId] = field(default_factory=set)
    quiet: frozenset[PeerId] = frozenset()  # of whom the coordinator misses beats itself
    left_out: set[PeerId] = field(default_factory=set)
    stopped: dict[PeerId, float] = field(default_factory=dict)
    attempt: Attempt | None = None
    attempt_began: float = 0.0
    pairs: set[Pair] = field(default_factory=set)
    told: set[PeerId] = field(default_factory=set)  # who has reported a failure
    first_report: float | None = None
    votes: dict[PeerId, Voted] = field(default_factory=dict)
    my_vote: float = 0.0
    all_voted: float | None = None
    asked: float | None = None  # since when it is to be found out why results differ
    slices: dict[PeerId, tuple[bytes, ...]] = field(default_factory=dict)

    # --- events -------------------------------------------------------------------------------

    def on_done(
        self,
        peer: PeerId,
        slots: Ranges,
        root: bytes,
        now: float,
        failure: Failure | None = None,
    ) -> list[Order]:
        """A member's pseudo-gradient is complete. Slots that were not leased to it are ignored."""
        leased = self.round.slots_of(peer)
        if peer not in self.round.contributors or peer in self.done:
            return []
        if peer not in self.round.members:
            return self._on_guest_done(peer, slots, root, now)
        room = self._room_for(peer) - len(slots)
        if not slots or room < 0 or not is_normal(slots) or difference(slots, leased):
            self.left_out.add(peer)
            slots = ()
        else:
            self.done_after_s[peer] = now - self.started
        self.done[peer] = slots
        self.roots[peer] = root
        if (
            failure is not None
            and self.attempt is None
            and len(failure.slots) <= room
            and is_failure_in(failure, self.round, slots)
        ):
            self.failures[peer] = failure
        return self.on_time(now)

    def _on_guest_done(self, peer: PeerId, slots: Ranges, root: bytes, now: float) -> list[Order]:
        is_leased = is_normal(slots) and not difference(slots, self.round.slots_of(peer))
        has_room = len(slots) <= self._room_for(peer)
        self.done[peer] = slots if is_leased and has_room else ()
        self.roots[peer] = root
        return self.on_time(now)

    def _room_for(self, peer: PeerId) -> int:
        """In how many pieces the peer may report, so that all reports fit into one result."""
        leases = (*self.round.leases, *self.round.guests)
        spare = MAX_RANGES - sum(len(lease.slots) for lease in leases)
        return len(self.round.slots_of(peer)) + spare // len(self.round.contributors)

    def on_trained(self, peer: PeerId, num_slots: int) -> None:
        """Somebody has trained so many slots by now."""
        if num_slots and peer in self.round.contributors:
            self.begun.add(peer)

    def on_lost(self, peer: PeerId, now: float) -> list[Order]:
        """A member's stream ended, or it has been silent for too long."""
        self.lost.add(peer)
        has_voted = peer in self.votes  # then it has gone on to the next round
        if self.attempt is not None and peer in self.attempt.contributors and not has_voted:
            self._report(now, {frozenset((peer,))})
        return self.on_time(now)

    def on_back(self, peer: PeerId) -> None:
        """A member that was lost has opened a new stream."""
        self.lost.discard(peer)

    def on_failed(
        self, peer: PeerId, number: int, missing: Iterable[str], now: float
    ) -> list[Order]:
        """A follower cannot finish the attempt because of others."""
        if self.attempt is None or number != self.attempt.number or peer in self.told:
            return []
        known = {*self.attempt.contributors}
        if peer not in known:  # it misses the round, and nobody else does for its sake
            return self.on_time(now)
        self.told.add(peer)
        if peer in self._guests:  # whoever it names: its word counts against itself only
            missing = [peer]
        self._report(now, {frozenset((peer, PeerId(name))) for name in missing if name in known})
        return self.on_time(now)

    def on_voted(self, peer: PeerId, voted: Voted, now: float) -> list[Order]:
        """A follower has finished the attempt and sent out its vote."""
        if self.attempt is None or voted.number != self.attempt.number:
            return []
        if peer not in self.round.members or peer in self.votes:
            return []
        if peer == self.me:
            self.my_vote = now
        self.votes[peer] = voted
        if self.all_voted is None and self._live() <= set(self.votes):
            self.all_voted = now
        return self.on_time(now)

    def on_explained(
        self, peer: PeerId, number: int, slices: tuple[bytes, ...], now: float
    ) -> list[Order]:
        """A follower says in what form it got each tree's slice."""
        if self.attempt is not None and number == self.attempt.number and peer in self.votes:
            self.slices.setdefault(peer, slices)
        return self.on_time(now)

    def on_time(self, now: float) -> list[Order]:
        """Time passes: call it a few times a second."""
        # Who has voted has done its part and may have gone on already.
        present = self._live() | self.votes.keys()
        if not has_quorum(len(present), len(self.round.members)):
            return [GiveUp(f"{len(self.lost)} of {len(self.round.members)} members are lost")]
        if self.attempt is None:
            return self._while_training(now)
        return self._while_averaging(self.attempt, now)

    def _report(self, now: float, pairs: set[Pair]) -> None:
        self.pairs |= pairs
        if self.first_report is None:
            self.first_report = now

    def _live(self) -> set[PeerId]:
        return set(self.round.members) - self.lost

    @property
    def _guests(self) -> frozenset[PeerId]:
        """Joiners whose work may be part of the round."""
        return self.round.contributors - set(self.round.members)

    # --- training -----------------------------------------------------------------------------

    def _while_training(self, now: float) -> list[Order]:
        waiting = [
            peer
            for peer in self.round.members
            if peer not in self.done and peer not in self.lost and peer not in self.left_out
        ]
        orders: list[Order] = []
        for peer in waiting:
            if peer in self.stopped:
                if now - self.stopped[peer] > self.patience.stop_s:
                    self.left_out.add(peer)
            elif self._is_straggling(now):
                self.stopped[peer] = now
                orders.append(StopTraining(peer))
        if all(peer in self.left_out for peer in waiting):
            return orders + self._without_guests(now)
        return orders

    def _without_guests(self, now: float) -> list[Order]:
        """Take what joiners have trained so far; nobody waits long for it."""
        if self.all_done is None:
            self.all_done = now
        guests = sorted(self._guests - self.lost)
        late = [peer for peer in guests if peer not in self.done]
        orders: list[Order] = [StopTraining(peer) for peer in late if peer not in self.stopped]
        self.stopped |= dict.fromkeys((peer for peer in late if peer not in self.stopped), now)
        share_s = self.patience.guest_share * (self.all_done - self.started)
        if self.begun & set(late) and now - self.all_done < min(self.patience.guest_s, share_s):
            return orders
        return orders + self._next_attempt(now)

    def _is_straggling(self, now: float) -> bool:
        working = self._live() - self.left_out
        num_done = len(self.done_after_s.keys() & working)
        knows_usual = self.usual_s > 0 or self.me in self.done_after_s
        if not knows_usual and 2 * num_done <= len(working):
            return False
        others_s = statistics.median(self.done_after_s.values()) if self.done_after_s else 0.0
        usual_s = max(self.usual_s, others_s)
        if 2 * num_done < len(working):
            usual_s *= self.patience.straggle_factor
        extra_s = max(self.patience.straggle_s, self.patience.straggle_share * usual_s)
        return now - self.started > usual_s + extra_s

    # --- averaging ----------------------------------------------------------------------------

    def _while_averaging(self, attempt: Attempt, now: float) -> list[Order]:
        live = self._live()
        if live <= set(self.votes):
            # Nothing failed, or those who failed are gone and the others have voted.
            return self._after_all_votes(attempt, now)
        if self.first_report is not None:
            everyone_told = live <= self.told | self.votes.keys()
            waited_s = now - self.first_report
            is_clear = self._is_plain() or self._is_agreed()
            limit_s = self.patience.doubt_s if self._is_doubtful() else self.patience.report_s
            if everyone_told or is_clear or waited_s > limit_s:
                return self._next_attempt(now)
        return self._without_the_mute(live, now)

    def _is_plain(self) -> bool:
        """Somebody cannot go on, and of each two one is lost, or quiet to the coordinator too."""
        gone = self.lost | self.quiet
        return bool(self.told and self.pairs) and all(pair & gone for pair in self.pairs)

    def _is_agreed(self) -> bool:
        """All that anybody says is that one and the same peer failed them, and two say so.

        Who accuses several does not count: nobody agrees with it yet.
        """
        if not self.pairs:
            return False
        named = frozenset.union(*self.pairs)
        common = frozenset.intersection(*self.pairs)
        return any(len(self.told & named - {peer}) > 1 for peer in common)

    def _is_doubtful(self) -> bool:
        """One word stands against another, so that both would go."""
        return len(self.pairs) == 1 and all(
            len(pair) > 1 and not pair & {self.me, *self._guests} for pair in self.pairs
        )

    def _without_the_mute(self, live: set[PeerId], now: float) -> list[Order]:
        """Those who neither vote nor say why, long after this peer itself has voted."""
        if self.me not in self.votes:
            return []
        usual_s = self.my_vote - self.attempt_began
        if now - self.my_vote < max(self.patience.vote_s, self.patience.vote_factor * usual_s):
            return []
        mute = frozenset(live - self.votes.keys())
        return [GiveUp(f"{len(mute)} members do not vote", mute)]

    def _after_all_votes(self, attempt: Attempt, now: float) -> list[Order]:
        if self.all_voted is None:
            self.all_voted = now
        if now - self.all_voted <= self.patience.certify_s:
            return []
        if len({vote.result for vote in self.votes.values()}) > 1:
            if self.asked is None:
                self.asked = now
                return [AskWhy(attempt.number)]
            waited_s = now - self.asked
            if not self.votes.keys() <= self.slices.keys() and waited_s <= self.patience.report_s:
                return []
        pairs = differing(
            self.slices, [givers_in(attempt.plan, tree) for tree in attempt.plan.trees]
        )
        if pairs and self._accused_in(pairs) & set(attempt.contributors):
            self.pairs |= pairs
            return self._next_attempt(now)
        mine = self.votes.get(self.me)
        others = {peer for peer, vote in self.votes.items() if mine and vote.result != mine.result}
        return [GiveUp("everyone has voted, but for different results", frozenset(others))]

    def _next_attempt(self, now: float) -> list[Order]:
        accused = self._accused_in(self.pairs)
        if self.attempt is not None and not accused & set(self.attempt.contributors):
            accused |= self.told - {self.me}  # they failed, and nobody failed them
        self.left_out |= accused
        absent = self.lost | self.left_out
        contributions = tuple(
            share_of(peer, self.done[peer])
            for peer in sorted(self.round.contributors)
            if self.done.get(peer) and peer not in absent
        )
        if self.attempt is not None:
            # Who has been left out does not come back: others may have its roles.
            before = {share.peer for share in self.attempt.contributions}
            contributions = tuple(share for share in contributions if share.peer in before)
        late = self._live() - self.done.keys()
        if not contributions and (self.attempt is not None or not self.failures or late):
            return [GiveUp("nobody is left who contributes", frozenset(late - {self.me}))]
        number = 0 if self.attempt is None else self.attempt.number + 1
        if number >= len(self.round.members) + SPARE_ATTEMPTS:
            return [GiveUp(f"{number} attempts have failed")]
        self.attempt = self._make_attempt(number, contributions)
        self.attempt_began = now
        self.pairs = set()
        self.told = set()
        self.first_report = None
        self.votes = {}
        self.all_voted = self.asked = None
        self.slices = {}
        return [StartAttempt(self.attempt)]

    def _accused_in(self, pairs: set[Pair]) -> set[PeerId]:
        """Whom to leave out: those whom the coordinator misses too, and in doubt others.

        Anybody can be a guest, under any number of names. So a guest never costs a member its
        place, and all of them together cost the round one attempt at most.
        """
        guests = self._guests
        among = {pair for pair in pairs if not pair & guests}
        gone = {peer for pair in among for peer in pair & (self.lost | self.quiet)}
        unclear = {pair for pair in among if not pair & gone}
        return gone | to_leave_out(unclear, self.me) | (guests if among < pairs else set())

    def _make_attempt(self, number: int, contributions: tuple[Share, ...]) -> Attempt:
        contributors = [PeerId(share.peer) for share in contributions]
        former: tuple[Share, ...] = ()
        everyone = sorted({*self.round.members, *map(PeerId, self.round.joiners)})
        if not contributors:
            plan = Plan(tuple(everyone), (tuple(range(len(everyone))),), ())
        elif self.attempt is None:
            plan = make_plan(contributors, everyone, self.links, self.num_values)
        else:
            gone = [one for one in self.attempt.contributions if one.peer not in contributors]
            former = tuple(sorted((*self.attempt.former, *gone), key=lambda share: share.peer))
            lost = {PeerId(share.peer) for share in former} | self.lost
            plan = repair(self.attempt.plan, lost, contributors)
        return Attempt(
            job_id=self.round.job_id,
            index=self.round.index,
            view=self.round.view,
            parent=self.round.parent,
            number=number,
            contributions=contributions,
            roots=tuple(self.roots[peer] for peer in contributors),
            plan=plan,
            former=former,
            failures=tuple(self.failures[peer] for peer in sorted(self.failures)),
        )
