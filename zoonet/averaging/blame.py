"""Whom to leave out when members fail each other. Pure.

Where one peer says that another failed it, one of the two is at fault and nobody else can tell
which. So every such pair must lose at least one of the two; whoever is in most pairs goes first,
which spares the many from one who accuses everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

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


def differing(
    told: Mapping[PeerId, tuple[bytes, ...]], givers: Sequence[Mapping[PeerId, PeerId]]
) -> set[Pair]:
    """Pairs of who got a slice in another form than the one who gave it says, and that one.

    `told` are digests of the slices, as each peer got them. `givers` say of each slice who was
    given it by whom; its maker is given it by nobody. Who passes slices on can change them, so
    their makers are not to blame for what others received. Where a giver tells nothing, what most
    peers got is taken for what it gave.
    """
    sound = {peer: slices for peer, slices in told.items() if len(slices) == len(givers)}
    pairs: set[Pair] = set()
    for index, giver_of in enumerate(givers):
        forms = Counter(slices[index] for slices in sound.values())
        if len(forms) < 2:
            continue
        usual = max(sorted(forms), key=lambda form: forms[form])
        for peer, giver in giver_of.items():
            given = sound[giver][index] if giver in sound else usual
            if peer in sound and sound[peer][index] != given:
                pairs.add(frozenset((peer, giver)))
    return pairs
