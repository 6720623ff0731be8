"""Sites: peers that are near each other, as each of them says. Pure.

Nearness is what two peers say of each other: whoever claims to be near to everybody, but is not
said to be so by them, stands alone. To be of a site takes the word of more than half of those who
are in it already, so one accomplice does not open a site of three.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from zoonet.crypto import PeerId

Sites = tuple[tuple[PeerId, ...], ...]


def cluster(near: Mapping[PeerId, Collection[PeerId]]) -> Sites:
    """Divide the peers into sites; `near` holds for each peer those that it says are near.

    Whoever has most neighbours is placed first. Sites and their peers stand in the order of ids,
    so everybody who knows the same comes to the same.
    """
    mutual = {
        peer: {other for other in said if other != peer and peer in near.get(other, ())}
        for peer, said in near.items()
    }
    sites: list[set[PeerId]] = []
    for peer in sorted(mutual, key=lambda one: (-len(mutual[one]), one)):
        votes = [len(site & mutual[peer]) for site in sites]
        fitting = [at for at, site in enumerate(sites) if 2 * votes[at] > len(site)]
        if fitting:
            sites[max(fitting, key=lambda at: (votes[at], -at))].add(peer)
        else:
            sites.append({peer})
    return tuple(sorted(tuple(sorted(site)) for site in sites))
