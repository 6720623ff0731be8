"""Whom to leave out when members fail each other. Pure.

Where one peer says that another failed it, one of the two is at fault and nobody else can tell
which. So every such pair must lose at least one of the two; whoever is in most pairs goes first,
which spares the many from one who accuses everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from zoonet.crypto import PeerId

Pair = frozenset[PeerId]  # of who accuses and who is accused; of one peer if it accuses itself


def to_leave_out(pairs: Iterable[Pair], me: PeerId) -> set[PeerId]:
    """Return peers such that each pair has one of them.

    In doubt between two peers both go, except for `me`, who decides here.
    """
    left = set(pairs)
    out: set[PeerId] = set()
    while left:
        degrees = Counter(peer for pair in left for peer in pair)
        most = max(degrees.values())
        worst = {peer for peer, degree in degrees.items() if degree == most}
        if len(worst) > 1:
            worst.discard(me)
        out |= worst
        left = {pair for pair in left if not pair & worst}
    return out


def differing(votes: dict[PeerId, tuple[bytes, ...]], reducers: tuple[PeerId, ...]) -> set[Pair]:
    """Pairs of who got a slice in another form than most, and whose slice it is.

    `votes` are each voter's digests of the slices, of which the i-th comes from `reducers[i]`.
    """
    pairs: set[Pair] = set()
    sound = {peer: slices for peer, slices in votes.items() if len(slices) == len(reducers)}
    for index, reducer in enumerate(reducers):
        forms = Counter(slices[index] for slices in sound.values())
        if len(forms) > 1:
            usual = max(sorted(forms), key=lambda form: forms[form])
            pairs |= {
                frozenset((peer, reducer))
                for peer, slices in sound.items()
                if slices[index] != usual
            }
    return pairs
