"""What members of a job say to each other about rounds, and the certificates they keep.

A `Lease` is what a `Round` gives a peer to train, a `Share` what a `RoundResult` says that it
contributed. Members, leases and shares always stand in the order of peer ids.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

from zoonet.averaging.plan import MAX_MEMBERS, MAX_TREES, Peer, Peers, Plan
from zoonet.crypto import Identity, PeerId, sha256, signer_of
from zoonet.ranges import Range, Ranges
from zoonet.records.envelope import Body, canonical, register
from zoonet.records.kinds import Digest, JobId, Natural

MAX_RANGES: Final = 1024  # of all shares of one round, so that it fits into its record
MAX_FAILED: Final = 16  # slots that one member may fail on in one round
MAX_VIEW: Final = 1_000_000
MESSAGE_BYTES: Final = 256 * 1024  # at most, of one message between member and coordinator

Slots = Annotated[tuple[Range, ...], Meta(max_length=MAX_RANGES)]
Rate = Annotated[float, Meta(ge=0, le=1e13)]
View = Annotated[int, Meta(ge=0, le=MAX_VIEW)]
Digests = Annotated[tuple[Digest, ...], Meta(max_length=MAX_MEMBERS)]


class Share(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer and data slots."""

    peer: Peer
    slots: Slots


class Lease(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a round hands to a member: data slots, and how many of them it is to contribute.

    With the others it goes on while the round is averaged; they are leased to it again in the
    next round. Members of the same `site` may average among themselves within the round.
    """

    peer: Peer
    slots: Slots
    steps: Natural
    site: Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)] = 0


class Failure(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member's own word, signed, that it could not train these slots of its lease."""

    peer: Peer
    slots: Annotated[tuple[Range, ...], Meta(max_length=MAX_FAILED)]
    signature: Annotated[bytes, Meta(min_length=65, max_length=65)]

    def is_of(self, job_id: str, parent: bytes) -> bool:
        """Tell whether the peer said so in the round after that head."""
        try:
            return signer_of(_failure_digest(job_id, parent, self.slots), self.signature) == (
                self.peer
            )
        except ValueError:
            return False


Leases = Annotated[tuple[Lease, ...], Meta(max_length=MAX_MEMBERS)]
Shares = Annotated[tuple[Share, ...], Meta(max_length=MAX_MEMBERS)]
Failures = Annotated[tuple[Failure, ...], Meta(max_length=MAX_MEMBERS)]


@register
class Round(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The coordinator's plan of one round: who trains which slots, and who joins."""

    KIND: ClassVar[str] = "round/3"
    MAX_BYTES: ClassVar[int] = 64 * 1024
    MAX_LIFETIME_S: ClassVar[float] = 24 * 3600.0

    job_id: JobId
    index: Natural
    view: View
    parent: Digest
    leases: Leases
    joiners: Peers = ()
    guests: Leases = ()  # what joiners may train in it already, once they have the state

    def key(self) -> str:
        return f"round/{self.job_id}/{self.index}/{self.view}/{self.parent.hex()[:16]}"

    @property
    def members(self) -> tuple[PeerId, ...]:
        """Those who train, contribute and vote."""
        return tuple(PeerId(lease.peer) for lease in self.leases)

    def lease_of(self, peer_id: PeerId) -> Lease:
        """What is leased to the peer: nothing, where it is neither member nor guest."""
        nothing = Lease(peer_id, (), 0)
        leases = (*self.leases, *self.guests)
        return next((lease for lease in leases if lease.peer == peer_id), nothing)

    def slots_of(self, peer_id: PeerId) -> Ranges:
        """Slots leased to the peer."""
        return self.lease_of(peer_id).slots

    @property
    def contributors(self) -> frozenset[PeerId]:
        """Those whose work may be part of it: members, and joiners that something is leased to."""
        return frozenset((*self.members, *(PeerId(lease.peer) for lease in self.guests)))

    @property
    def num_steps(self) -> int:
        """Inner steps that the round asks of all its members."""
        return sum(lease.steps for lease in self.leases)


class Attempt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The coordinator's decision whom to average in: all of these and nobody else."""

    job_id: JobId
    index: Natural
    view: View
    parent: Digest
    number: Natural
    contributions: Shares
    roots: Digests  # what each contributor has committed to
    plan: Plan
    former: Shares = ()  # contributors of earlier attempts: some chunks may hold their parts
    failures: Failures = ()  # slots that members could not train, the same in all attempts

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Those whose pseudo-gradients are averaged."""
        return tuple(PeerId(share.peer) for share in self.contributions)

    def round_key(self) -> bytes:
        """What names the round on the data plane (16 bytes), the same for all its attempts."""
        seat = (self.job_id, self.index, self.view, self.parent)
        return sha256(b"zoonet-round/1\x00", msgspec.msgpack.encode(seat))[:16]


class RoundResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a round did. Its digest names it and is the parent of the next one."""

    job_id: JobId
    index: Natural
    view: View
    parent: Digest
    members: Peers
    joiners: Peers
    contributions: Shares
    state: Digest  # of the outer parameters and momentum after the outer step
    failures: Failures = ()

    def digest(self) -> bytes:
        """Digest (32 bytes) of the result, which members sign."""
        return sha256(b"zoonet-round-result/1\x00", canonical(self))


def report_failure(identity: Identity, job_id: str, parent: bytes, slots: Ranges) -> Failure:
    """Sign that these slots (MAX_FAILED at most) cannot be trained here."""
    signature = identity.sign(_failure_digest(job_id, parent, slots))
    return Failure(identity.peer_id, slots, signature)


def _failure_digest(job_id: str, parent: bytes, slots: Ranges) -> bytes:
    said = msgspec.msgpack.encode((job_id, parent, slots))
    return sha256(b"zoonet-failed-slots/1\x00", said)


class Vote(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member's signature of a result's digest."""

    peer: Peer
    signature: Annotated[bytes, Meta(min_length=65, max_length=65)]

    def is_for(self, digest: bytes) -> bool:
        """Tell whether this is the peer's own signature of that digest."""
        try:
            return signer_of(digest, self.signature) == self.peer
        except ValueError:
            return False


class Certificate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A result signed by more than half of its round's members: a link of the chain.

    It is also every contributor's receipt: the others signed that its slots were averaged in.
    """

    result: RoundResult
    votes: Annotated[tuple[Vote, ...], Meta(max_length=MAX_MEMBERS)]


def cast_vote(identity: Identity, result: RoundResult) -> Vote:
    """Sign a result."""
    return Vote(identity.peer_id, identity.sign(result.digest()))


# --- a member's conversation with the coordinator: one stream for one round ------------------


class Ready(Struct, frozen=True, kw_only=True, tag="ready", forbid_unknown_fields=True):
    """Member: I stand at this head; let me into the next round."""

    job_id: JobId
    length: Natural
    head: Digest
    view: View
    slots_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    near: Peers = ()  # who answers so quickly that they must be of the same site
    up_bytes_per_s: Rate = 0.0  # as measured, 0 while unknown
    down_bytes_per_s: Rate = 0.0
    lan_bytes_per_s: Rate = 0.0
    leased: Slots = ()  # to it by the last plan that it had, and not certified yet


class Beat(Struct, frozen=True, kw_only=True, tag="beat", forbid_unknown_fields=True):
    """Either side: I am alive; a member adds how many of its slots it has trained."""

    num_slots: Natural = 0


class Done(Struct, frozen=True, kw_only=True, tag="done", forbid_unknown_fields=True):
    """Member: my pseudo-gradient over these slots is complete, and this is what I will send."""

    slots: Slots
    root: Digest = bytes(32)  # of the payload; means nothing where there are no slots
    failure: Failure | None = None  # slots that could not be trained


class Failed(Struct, frozen=True, kw_only=True, tag="failed", forbid_unknown_fields=True):
    """Member: this attempt cannot be finished, because of these."""

    number: Natural
    missing: Peers


class Voted(Struct, frozen=True, kw_only=True, tag="voted", forbid_unknown_fields=True):
    """Member: this attempt is finished here, and my vote for this result is out."""

    number: Natural
    result: Digest


class Explained(Struct, frozen=True, kw_only=True, tag="explained", forbid_unknown_fields=True):
    """Member: the digests of the means that each tree has brought here."""

    number: Natural
    slices: Annotated[tuple[Digest, ...], Meta(max_length=MAX_TREES)]


class Planned(Struct, frozen=True, kw_only=True, tag="planned", forbid_unknown_fields=True):
    """Coordinator: the signed round (its raw record)."""

    record: Annotated[bytes, Meta(max_length=64 * 1024)]


class Elsewhere(Struct, frozen=True, kw_only=True, tag="elsewhere", forbid_unknown_fields=True):
    """Coordinator: I stand at another head; compare chains with me."""

    length: Natural
    head: Digest


class Busy(Struct, frozen=True, kw_only=True, tag="busy", forbid_unknown_fields=True):
    """Not the coordinator, but a member of this round, which another peer coordinates."""

    record: Annotated[bytes, Meta(max_length=64 * 1024)]


class Stop(Struct, frozen=True, kw_only=True, tag="stop", forbid_unknown_fields=True):
    """Coordinator: the others have finished; contribute what you have."""


class Start(Struct, frozen=True, kw_only=True, tag="start", forbid_unknown_fields=True):
    """Coordinator: average, with exactly these contributors."""

    attempt: Attempt


class Explain(Struct, frozen=True, kw_only=True, tag="explain", forbid_unknown_fields=True):
    """Coordinator: results differ; which slice came in two forms, and from whom?"""

    number: Natural


FromMember = Ready | Beat | Done | Failed | Voted | Explained
FromCoordinator = Planned | Elsewhere | Busy | Beat | Stop | Start | Explain

_from_member = msgspec.msgpack.Decoder(FromMember, strict=True)
_from_coordinator = msgspec.msgpack.Decoder(FromCoordinator, strict=True)


def decode_from_member(frame: bytes) -> FromMember:
    """Raises msgspec.DecodeError."""
    message: FromMember = _from_member.decode(frame)
    return message


def decode_from_coordinator(frame: bytes) -> FromCoordinator:
    """Raises msgspec.DecodeError."""
    message: FromCoordinator = _from_coordinator.decode(frame)
    return message
