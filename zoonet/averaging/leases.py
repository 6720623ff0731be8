"""Which member trains which data slots in the next round. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from zoonet.averaging.messages import MAX_RANGES, Lease, Ready
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, count, difference, is_normal, overlaps, take, union

EVEN_SPEEDS = (0.75, 1.33)  # a peer within this share of the median speed counts as even
SPEED_LIMITS = (1 / 64, 8.0)  # whoever is slower yet would make everybody wait


def local_steps(
    speeds: Mapping[PeerId, float], inner_steps: int, *, is_dynamic: bool
) -> dict[PeerId, int]:
    """How many inner steps each member takes: H for the median speed, in proportion for others.

    `speeds` are slots a second, 0 where unknown. H_w = v_w / v_ref * H, after Dynamic Local
    Updates (arXiv 2401.09135); speeds near the median count as even, so that noise does not
    turn into unequal weights.
    """
    known = [speed for speed in speeds.values() if speed > 0]
    median = statistics.median(known) if known else 0.0
    steps = {}
    for peer, speed in speeds.items():
        ratio = speed / median if is_dynamic and speed > 0 and median > 0 else 1.0
        if EVEN_SPEEDS[0] <= ratio <= EVEN_SPEEDS[1]:
            ratio = 1.0
        ratio = min(max(ratio, SPEED_LIMITS[0]), SPEED_LIMITS[1])
        steps[peer] = max(1, round(inner_steps * ratio))
    return steps


def most_slots(inner_steps: int, ahead: float = 0.0) -> int:
    """The most slots that one member may be leased in one round."""
    return max(1, math.ceil(inner_steps * SPEED_LIMITS[1] * (1 + ahead)))


def lease(
    free: Ranges,
    members: Mapping[PeerId, Ready],
    inner_steps: int,
    *,
    is_dynamic: bool = True,
    ahead: float = 0.0,
    known: Mapping[PeerId, Ranges] | None = None,
    failed: Mapping[PeerId, Ranges] | None = None,
    most_pieces: int = MAX_RANGES,
) -> tuple[Lease, ...]:
    """Hand out slots to members, in the order of their ids.

    A member gets `ahead` times as many slots beyond those of the round, for it to go on with
    meanwhile, and keeps what was leased to it before and is not certified yet (`Ready.leased`),
    where nobody else has a better claim. `known` says which slots the coordinator has seen leased
    to whom before: that claim is the better one, and of two who merely say so neither gets them.
    What was leased to peers that are not here comes last: they may come back with it trained.
    Slots that a member has `failed` on are for another one, unless all members have.
    Towards the end of the job what is left is shared out in the same proportions. All leases
    together are in `most_pieces` at most, where that is one for each member.
    """
    speeds = {peer: members[peer].slots_per_s for peer in sorted(members)}
    steps = local_steps(speeds, inner_steps, is_dynamic=is_dynamic)
    pieces = max(1, most_pieces // max(1, len(members)))
    shunned = _shunned(failed or {}, members)
    claims = {peer: difference(members[peer].leased, shunned.get(peer, ())) for peer in speeds}
    most = most_slots(inner_steps, ahead)
    kept = _settle(claims, free, known or {}, most, pieces // 2)
    free = difference(free, (piece for slots in kept.values() for piece in slots))
    absent = (slots for peer, slots in (known or {}).items() if peer not in members)
    fresh = difference(free, (piece for slots in absent for piece in slots))
    new = {peer: max(0, math.ceil(steps[peer] * (1 + ahead)) - count(kept[peer])) for peer in steps}
    if sum(new.values()) > count(fresh):
        fresh = free
        most_new = {peer: count(difference(fresh, shunned.get(peer, ()))) for peer in new}
        new = _fit({peer: min(num, most_new[peer]) for peer, num in new.items()}, count(fresh))
    leases = []
    for peer in speeds:
        taken, _ = take(difference(fresh, shunned.get(peer, ())), new[peer])
        taken = taken[: pieces - len(kept[peer])]
        fresh = difference(fresh, taken)
        slots = union(kept[peer], taken)
        leases.append(Lease(peer, slots, min(steps[peer], count(slots))))
    return tuple(leases)


def _shunned(failed: Mapping[PeerId, Ranges], members: Collection[PeerId]) -> dict[PeerId, Ranges]:
    """On what each member has failed and not all of them have."""
    common = failed.get(next(iter(members)), ()) if members else ()
    for peer in members:
        slots = failed.get(peer, ())
        common = difference(common, difference(common, slots))
    return {peer: difference(failed.get(peer, ()), common) for peer in members}


def placed(leases: Sequence[Lease], sites: Sequence[Collection[PeerId]]) -> tuple[Lease, ...]:
    """The leases, each with the number of its peer's site."""
    numbers = {peer: number for number, site in enumerate(sites) for peer in site}
    return tuple(replace(lease, site=numbers[PeerId(lease.peer)]) for lease in leases)


def _settle(
    claims: Mapping[PeerId, Ranges],
    free: Ranges,
    known: Mapping[PeerId, Ranges],
    most: int,
    most_pieces: int,
) -> dict[PeerId, Ranges]:
    """What each member keeps of what it says was leased to it: all of its claim or nothing."""
    sound = {
        peer: claim
        for peer, claim in claims.items()
        if is_normal(claim)
        and len(claim) <= most_pieces
        and count(claim) <= most
        and not difference(claim, free)
    }
    seen = {peer for peer, claim in sound.items() if not difference(claim, known.get(peer, ()))}
    kept: dict[PeerId, Ranges] = dict.fromkeys(claims, ())
    taken: Ranges = ()
    for peer in sorted(seen):
        if not overlaps(sound[peer], taken):
            kept[peer] = sound[peer]
            taken = union(taken, sound[peer])
    unseen = set(sound) - seen
    for peer in unseen:
        rivals = (piece for other in unseen - {peer} for piece in sound[other])
        if not overlaps(sound[peer], (*taken, *rivals)):
            kept[peer] = sound[peer]
    return kept


def _fit(wanted: dict[PeerId, int], available: int) -> dict[PeerId, int]:
    """Scale down to what is available; what rounding leaves goes to the first peers."""
    total = sum(wanted.values())
    if total <= available:
        return wanted
    fitted = {peer: steps * available // total for peer, steps in wanted.items()}
    rest = available - sum(fitted.values())
    for peer in sorted(fitted):
        if rest and fitted[peer] < wanted[peer]:
            fitted[peer] += 1
            rest -= 1
    return fitted
