"""Which member trains which data slots in the next round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from zoonet.averaging.messages import Ready, Share
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, count, difference, is_normal, take, union

EVEN_SPEEDS = (0.75, 1.33)  # a peer within this share of the median speed counts as even
SPEED_LIMITS = (0.125, 8.0)


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


def lease(
    free: Ranges,
    members: Mapping[PeerId, Ready],
    inner_steps: int,
    *,
    is_dynamic: bool = True,
) -> tuple[Share, ...]:
    """Hand out slots to members, in the order of their ids.

    A member keeps the slots that it has trained but that no round has certified yet (`carried`),
    where they are free and nobody else carries them; the rest are new. Towards the end of the
    job what is left is shared out in the same proportions.
    """
    speeds = {peer: members[peer].slots_per_s for peer in sorted(members)}
    wanted = local_steps(speeds, inner_steps, is_dynamic=is_dynamic)
    carried: dict[PeerId, Ranges] = {}
    for peer in sorted(members):
        claim = members[peer].carried
        is_free = is_normal(claim) and not difference(claim, free)
        carried[peer] = claim if is_free else ()
        free = difference(free, carried[peer])
    new = {peer: max(0, wanted[peer] - count(carried[peer])) for peer in wanted}
    new = _fit(new, count(free))
    shares = []
    for peer in sorted(members):
        taken, free = take(free, new[peer])
        shares.append(Share(peer, union(carried[peer], taken)))
    return tuple(shares)


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
