"""The chain of certified rounds: the only truth of a job. Pure; no clock, no network.

Who may vote follows from the chain itself: the members of a round are members or joiners of the
round before, so strangers cannot certify a chain of their own onto it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from zoonet.averaging.certificates import Certificates, Heads
from zoonet.averaging.messages import (
    MAX_FAILED,
    MAX_RANGES,
    Certificate,
    Failure,
    Lease,
    RoundResult,
    Share,
    Vote,
)
from zoonet.averaging.plan import MAX_MEMBERS
from zoonet.averaging.poison import Poison
from zoonet.crypto import PeerId, is_peer_id, sha256
from zoonet.errors import ProtocolViolation
from zoonet.ranges import Ranges, count, difference, is_normal, normalise, overlaps, union

_GENESIS: Final = b"zoonet-genesis/1\x00"


def genesis(job_id: str) -> bytes:
    """The head of a job's empty chain."""
    return sha256(_GENESIS, job_id.encode())


def coordinators(head: bytes, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """An order of these peers that depends on the head, so that turns fall to all alike."""
    return tuple(sorted(set(peers), key=lambda peer: sha256(head, peer.encode())))


def has_quorum(num_votes: int, num_members: int) -> bool:
    """More than half of the round's members."""
    return 2 * num_votes > num_members


@dataclass(slots=True)
class Chain:
    """The certified rounds of one job and what follows from them.

    `num_slots` is the job's length in data slots; slots are numbered from 0.
    """

    job_id: str
    num_slots: int
    certificates: Certificates = field(default_factory=Certificates)
    heads: Heads = field(default_factory=Heads)
    done: Ranges = ()
    poison: Poison = field(init=False)

    def __post_init__(self) -> None:
        self.poison = Poison(self.num_slots)

    def __len__(self) -> int:
        return len(self.certificates)

    @property
    def head(self) -> bytes:
        """Digest of the last certified result."""
        return self.heads[-1] if self.heads else genesis(self.job_id)

    @property
    def last(self) -> RoundResult | None:
        """The last certified result."""
        return self.certificates[-1].result if self.certificates else None

    @property
    def roster(self) -> tuple[PeerId, ...]:
        """Who may be a member of the next round; empty for the first, which founds the job."""
        if self.last is None:
            return ()
        return tuple(PeerId(peer) for peer in sorted({*self.last.members, *self.last.joiners}))

    @property
    def turns(self) -> tuple[PeerId, ...]:
        """Who coordinates the next round, view by view; empty for the first one.

        Members of the last round come before its joiners, of whom nobody can tell yet whether
        they are there at all.
        """
        if self.last is None:
            return ()
        members, joiners = (
            coordinators(self.head, map(PeerId, peers))
            for peers in (self.last.members, self.last.joiners)
        )
        return (*members, *joiners)

    @property
    def num_done(self) -> int:
        """Certified slots that were trained."""
        return count(self.done)

    @property
    def skipped(self) -> Ranges:
        """Slots that could not be trained and are left out of the job."""
        return self.poison.skipped

    @property
    def free(self) -> Ranges:
        """Slots that no certified round holds, but for those that are skipped."""
        return difference(((0, self.num_slots),), (*self.done, *self.skipped))

    @property
    def hopeless(self) -> Ranges:
        """Free slots that most of the roster have failed on, too many for them to be skipped."""
        return self.poison.hopeless(self.roster)

    @property
    def trainable(self) -> Ranges:
        """Free slots that are worth another try."""
        return difference(self.free, self.hopeless)

    @property
    def is_finished(self) -> bool:
        """Tell whether every slot is certified or skipped."""
        return self.num_done + count(self.skipped) >= self.num_slots

    @property
    def is_stuck(self) -> bool:
        """Tell whether all that is left cannot be trained, and is too much to be skipped."""
        return bool(self.hopeless) and not self.trainable

    @property
    def is_over(self) -> bool:
        """Tell whether no round is to follow: the job is finished, or ends early."""
        return self.is_finished or self.is_stuck

    def check_result(self, result: RoundResult) -> None:
        """Raise ProtocolViolation where the result cannot follow this chain's head.

        A round in which nobody could train anything says so, and leaves the state as it is.
        """
        if result.job_id != self.job_id:
            raise ProtocolViolation("", "a round of another job")
        if result.index != len(self) or result.parent != self.head:
            raise ProtocolViolation("", f"round {result.index} does not follow this chain")
        self.check_members(result.members, result.joiners)
        peers = [share.peer for share in result.contributions]
        has_any = bool(peers or result.failures)
        everyone = {*result.members, *result.joiners}
        if not has_any or peers != sorted(set(peers)) or not set(peers) <= everyone:
            raise ProtocolViolation("", "contributions that are not those of members")
        if not peers and self.last is not None and result.state != self.last.state:
            raise ProtocolViolation("", "a state that nobody has contributed to")
        for share in result.contributions:
            if not share.slots:
                raise ProtocolViolation(share.peer, "a contribution without slots")
        self.check_shares((*result.contributions, *result.failures))
        self.check_failures(result.failures, result.members)

    def check_failures(self, failures: Sequence[Failure], members: Sequence[str]) -> None:
        """Raise ProtocolViolation unless each is a member's own word about this round."""
        peers = [failure.peer for failure in failures]
        if peers != sorted(set(peers)) or not set(peers) <= set(members):
            raise ProtocolViolation("", "failures that are not those of members")
        for failure in failures:
            if not 0 < count(failure.slots) <= MAX_FAILED:
                raise ProtocolViolation(failure.peer, "a failure on no slot, or on too many")
            if self.poison.is_hopeless(failure.slots, self.roster):
                raise ProtocolViolation(failure.peer, "a failure on a slot that is given up")
            if not failure.is_of(self.job_id, self.head):
                raise ProtocolViolation(failure.peer, "a failure that it has not signed")

    def check_members(self, members: Sequence[str], joiners: Sequence[str]) -> None:
        """Raise ProtocolViolation for peers who cannot make up the next round."""
        if not members or list(members) != sorted(set(members)):
            raise ProtocolViolation("", "members that are missing, doubled or out of order")
        if list(joiners) != sorted(set(joiners)) or set(members) & set(joiners):
            raise ProtocolViolation("", "joiners that are doubled, out of order or members")
        if len(members) + len(joiners) > MAX_MEMBERS:
            raise ProtocolViolation("", f"{len(members) + len(joiners)} members and joiners")
        if self.certificates and not set(members) <= set(self.roster):
            raise ProtocolViolation("", "members whom the round before did not admit")
        if not all(is_peer_id(peer) for peer in (*members, *joiners)):
            raise ProtocolViolation("", "members or joiners that are no peers")

    def check_shares(self, shares: Sequence[Share | Lease | Failure]) -> None:
        """Raise ProtocolViolation where the slots are not free, each in one share at most."""
        if sum(len(share.slots) for share in shares) > MAX_RANGES:
            raise ProtocolViolation("", "shares in too many pieces")
        for share in shares:
            if not is_normal(share.slots):
                raise ProtocolViolation(share.peer, "a share with malformed slots")
            if share.slots and share.slots[-1][1] > self.num_slots:
                raise ProtocolViolation(share.peer, "slots that do not exist")
        slots = normalise(piece for share in shares for piece in share.slots)
        if count(slots) != sum(count(share.slots) for share in shares):
            raise ProtocolViolation("", "a slot that is in two shares")
        if overlaps(self.done, slots) or overlaps(self.skipped, slots):
            raise ProtocolViolation("", "slots that are done already, or skipped")

    def check(self, certificate: Certificate) -> None:
        """Raise ProtocolViolation where the certificate cannot be the chain's next link."""
        self.check_result(certificate.result)
        digest = certificate.result.digest()
        voters = {vote.peer for vote in certificate.votes}
        if len(voters) != len(certificate.votes) or not voters <= set(certificate.result.members):
            raise ProtocolViolation("", "votes that are doubled or not those of members")
        if not has_quorum(len(voters), len(certificate.result.members)):
            raise ProtocolViolation("", f"{len(voters)} votes are no quorum")
        for vote in certificate.votes:
            if not vote.is_for(digest):
                raise ProtocolViolation(vote.peer, "a forged vote")

    def extend(self, certificate: Certificate) -> None:
        """Append a link. Raises ProtocolViolation, and then the chain is as it was."""
        self.check(certificate)
        self.certificates.append(certificate)
        self.heads.append(certificate.result.digest())
        done = _slots_of(certificate)
        self.done = union(self.done, done)
        result = certificate.result
        self.poison.note(result.index, result.failures, num_members=len(result.members))
        self.poison.forget(done)

    def head_at(self, length: int) -> bytes:
        """The head that this chain had when it was that long."""
        return self.heads[length - 1] if length else genesis(self.job_id)

    def copy_until(self, length: int) -> Chain:
        """A chain with the first `length` links of this one."""
        later = (self.certificates[index] for index in range(length, len(self)))
        chain = Chain(
            self.job_id,
            self.num_slots,
            self.certificates.until(length),
            self.heads.until(length),
            difference(self.done, [piece for link in later for piece in _slots_of(link)]),
        )
        chain.poison = self.poison.until(length, chain.done)
        return chain


def longer(chain: Chain, links: Iterable[Certificate]) -> Chain:
    """A chain that goes on with these links. Raises ProtocolViolation."""
    grown = chain.copy_until(len(chain))
    for link in links:
        grown.extend(link)
    return grown


def idlers(chain: Chain, *, num_rounds: int, num_needed: int) -> set[PeerId]:
    """Members of all of the last rounds in which somebody trained who contributed to none of them.

    Rounds in which nobody could train anything are passed over, up to three for each that counts.
    Nobody while fewer than `num_needed` slots are left: then there may be no work for everyone.
    """
    recent = [link.result for link in chain.certificates[-4 * num_rounds :]]
    results = [result for result in recent if result.contributions][-num_rounds:]
    if len(results) < num_rounds or count(chain.free) < num_needed:
        return set()
    members = set.intersection(*(set(result.members) for result in results))
    busy = {share.peer for result in results for share in result.contributions}
    return {PeerId(peer) for peer in members - busy}


def _slots_of(certificate: Certificate) -> Ranges:
    shares = certificate.result.contributions
    return tuple(piece for share in shares for piece in share.slots)


def replaces(theirs: Chain, ours: Chain, *, least_members: int = 0) -> bool:
    """Tell whether a chain of others, wholly checked, is to be followed instead of ours.

    Where both have gone on since they split, the first round after the split decides: the one
    with more members wins, for one peer can certify any number of rounds with itself alone. Then
    more certified slots win, then the lower digest. A chain that merely goes on where ours ends
    is followed if its next round has at least `least_members` members: as many as are about to
    certify that round here.
    """
    split = split_of(theirs, ours)
    if split == len(theirs):
        return False
    num_theirs = len(theirs.certificates[split].result.members)
    if split == len(ours):
        return num_theirs >= least_members
    num_ours = len(ours.certificates[split].result.members)
    return (num_theirs, theirs.num_done, ours.head) > (num_ours, ours.num_done, theirs.head)


def split_of(left: Chain, right: Chain) -> int:
    """Number of rounds that two chains have in common."""
    # A head names all that was before it.
    indices = range(min(len(left), len(right)))
    return bisect_left(indices, True, key=lambda index: left.heads[index] != right.heads[index])


def assemble(result: RoundResult, votes: Iterable[Vote]) -> Certificate | None:
    """Make the certificate once there are enough good votes, else None."""
    digest = result.digest()
    good = {v.peer: v for v in votes if v.peer in result.members and v.is_for(digest)}
    if not has_quorum(len(good), len(result.members)):
        return None
    return Certificate(result=result, votes=tuple(good[peer] for peer in sorted(good)))


@dataclass(frozen=True, slots=True)
class Credit:
    """What the chain says one peer did."""

    peer: PeerId
    num_rounds: int
    num_slots: int


def credits(certificates: Sequence[Certificate], *, min_members: int = 1) -> list[Credit]:
    """Who contributed what, most slots first; counts rounds of at least `min_members` members."""
    rounds: dict[str, int] = {}
    slots: dict[str, int] = {}
    for certificate in certificates:
        if len(certificate.result.members) < min_members:
            continue
        for share in certificate.result.contributions:
            rounds[share.peer] = rounds.get(share.peer, 0) + 1
            slots[share.peer] = slots.get(share.peer, 0) + count(share.slots)
    found = [Credit(PeerId(peer), rounds[peer], slots[peer]) for peer in sorted(rounds)]
    return sorted(found, key=lambda credit: -credit.num_slots)


def share_of(peer: PeerId, slots: Ranges) -> Share:
    """A share with sorted, joined slots."""
    return Share(peer, union(slots, ()))
