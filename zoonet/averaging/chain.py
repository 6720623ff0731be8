"""The chain of certified rounds: the only truth of a job. Pure; no clock, no network.

Who may vote follows from the chain itself: the members of a round are members or joiners of the
round before, so strangers cannot certify a chain of their own onto it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from zoonet.averaging.messages import MAX_MEMBERS, Certificate, RoundResult, Share, Vote
from zoonet.crypto import PeerId, sha256
from zoonet.errors import ProtocolViolation
from zoonet.ranges import Ranges, count, difference, is_normal, overlaps, union

_GENESIS: Final = b"zoonet-genesis/1\x00"


def genesis(job_id: str) -> bytes:
    """The head of a job's empty chain."""
    return sha256(_GENESIS, job_id.encode())


def coordinators(head: bytes, roster: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Who coordinates the round after `head`: the first; if it fails the second; and so on."""
    return tuple(sorted(set(roster), key=lambda peer: sha256(head, peer.encode())))


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
    certificates: list[Certificate] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    done: Ranges = ()

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
    def num_done(self) -> int:
        """Certified slots."""
        return count(self.done)

    @property
    def free(self) -> Ranges:
        """Slots that no certified round holds."""
        return difference(((0, self.num_slots),), self.done)

    @property
    def is_finished(self) -> bool:
        """Tell whether every slot is certified."""
        return self.num_done >= self.num_slots

    def check_result(self, result: RoundResult) -> None:
        """Raise ProtocolViolation where the result cannot follow this chain's head."""
        if result.job_id != self.job_id:
            raise ProtocolViolation("", "a round of another job")
        if result.index != len(self) or result.parent != self.head:
            raise ProtocolViolation("", f"round {result.index} does not follow this chain")
        members = result.members
        if not members or list(members) != sorted(set(members)):
            raise ProtocolViolation("", "members that are missing, doubled or out of order")
        if len(members) + len(result.joiners) > MAX_MEMBERS or set(members) & set(result.joiners):
            raise ProtocolViolation("", "too many members, or members who also join")
        if self.certificates and not set(members) <= set(self.roster):
            raise ProtocolViolation("", "members whom the round before did not admit")
        self._check_contributions(result)

    def _check_contributions(self, result: RoundResult) -> None:
        peers = [share.peer for share in result.contributions]
        if not peers or peers != sorted(set(peers)) or not set(peers) <= set(result.members):
            raise ProtocolViolation("", "contributions that are not those of members")
        taken = self.done
        for share in result.contributions:
            if not share.slots or not is_normal(share.slots):
                raise ProtocolViolation(share.peer, "a contribution with malformed slots")
            if share.slots[-1][1] > self.num_slots or overlaps(taken, share.slots):
                raise ProtocolViolation(share.peer, "slots that are done already or do not exist")
            taken = union(taken, share.slots)

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
        for share in certificate.result.contributions:
            self.done = union(self.done, share.slots)

    def head_at(self, length: int) -> bytes:
        """The head that this chain had when it was that long."""
        return self.heads[length - 1] if length else genesis(self.job_id)

    def copy_until(self, length: int) -> Chain:
        """A chain with the first `length` links of this one."""
        copy = Chain(self.job_id, self.num_slots)
        copy.certificates = self.certificates[:length]
        copy.heads = self.heads[:length]
        for certificate in copy.certificates:
            for share in certificate.result.contributions:
                copy.done = union(copy.done, share.slots)
        return copy


def is_heavier(num_done: int, head: bytes, than: Chain) -> bool:
    """Tell whether a chain of that many certified slots wins: more slots, ties by lower digest."""
    return (num_done, than.head) > (than.num_done, head)


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
