"""Chains, rounds and certificates made by hand, with real signatures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging.chain import Chain
from zoonet.averaging.messages import (
    Certificate,
    Lease,
    Ready,
    Round,
    RoundResult,
    Share,
    cast_vote,
)
from zoonet.crypto import Identity, PeerId
from zoonet.ranges import Ranges, count

NAMES = ("ada", "bob", "cyd", "dan", "eve")


def peer(name: str) -> PeerId:
    return identity_of(name).peer_id


def peers(*names: str) -> tuple[PeerId, ...]:
    """Ids in their order, which is not that of the names."""
    return tuple(sorted(peer(name) for name in names))


def in_order(*names: str) -> list[Identity]:
    return sorted((identity_of(name) for name in names), key=lambda one: one.peer_id)


def shares(slots: Mapping[str, Ranges]) -> tuple[Share, ...]:
    by_peer = sorted((peer(name), ranges) for name, ranges in slots.items())
    return tuple(Share(peer_id, ranges) for peer_id, ranges in by_peer)


def leases(slots: Mapping[str, Ranges]) -> tuple[Lease, ...]:
    """All of the slots for the round itself."""
    return tuple(whole(share.peer, share.slots) for share in shares(slots))


def whole(peer_id: str, slots: Ranges) -> Lease:
    """A lease of slots that are all to be contributed."""
    return Lease(peer_id, slots, count(slots))


def result_after(
    chain: Chain,
    members: Iterable[str],
    *,
    slots: Mapping[str, Ranges] | None = None,
    joiners: Iterable[str] = (),
    view: int = 0,
    state: bytes = bytes(32),
) -> RoundResult:
    """What follows the chain's head: by default each member did the next two slots."""
    members = tuple(members)
    if slots is None:
        start = chain.num_done
        slots = {name: ((start + 2 * at, start + 2 * at + 2),) for at, name in enumerate(members)}
    return RoundResult(
        job_id=chain.job_id,
        index=len(chain),
        view=view,
        parent=chain.head,
        members=peers(*members),
        joiners=peers(*joiners),
        contributions=shares(slots),
        state=state,
    )


def certified(result: RoundResult, voters: Iterable[str]) -> Certificate:
    votes = [cast_vote(identity, result) for identity in in_order(*voters)]
    return Certificate(result=result, votes=tuple(votes))


def grow(chain: Chain, *members: str, rounds: int = 1, **fields: object) -> Chain:
    """Append rounds in which these members did two slots each, and return the chain."""
    for _ in range(rounds):
        chain.extend(certified(result_after(chain, members, **fields), members))
    return chain


def empty_chain(num_slots: int = 1000) -> Chain:
    return Chain(JOB_ID, num_slots)


def plan_after(
    chain: Chain,
    slots: Mapping[str, Ranges],
    *,
    joiners: Iterable[str] = (),
    view: int = 0,
) -> Round:
    return Round(
        job_id=chain.job_id,
        index=len(chain),
        view=view,
        parent=chain.head,
        leases=leases(slots),
        joiners=peers(*joiners),
    )


def ready(speed: float = 1.0, leased: Ranges = ()) -> Ready:
    return Ready(job_id=JOB_ID, length=0, head=bytes(32), view=0, slots_per_s=speed, leased=leased)
