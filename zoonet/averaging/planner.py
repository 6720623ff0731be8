"""Makes the plan of an all-reduce from what peers know of their links. Pure.

Sites come from who is near whom (`sites`), slice sizes from a linear program (`slices`); here they
become whole chunks in trees. The solver's last bit may differ between machines, so members do not
plan for themselves: the coordinator's plan comes with its attempt, and they check that it can
carry every chunk (`plan.check_shape`) and that it is not much slower than their own would be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from zoonet.averaging.apportion import HandOut, Runs, aligned, apportion
from zoonet.averaging.forecast import (
    Forecast,
    Load,
    Payload,
    loads,
    predict,
    predicted_s,
    wan_bytes,
)
from zoonet.averaging.links import PeerLinks, Rates, resolve
from zoonet.averaging.plan import Indices, Plan, Tree, num_chunks
from zoonet.averaging.sites import cluster
from zoonet.averaging.slices import Crew, Slices, preload, solve
from zoonet.crypto import PeerId

__all__ = [
    "Forecast",
    "Load",
    "Payload",
    "is_reasonable",
    "loads",
    "make_butterfly",
    "make_plan",
    "predict",
    "predicted_s",
    "preload",
    "wan_bytes",
]

MOST_TIMES_SLOWER: Final = 2.0
SLACK_S: Final = 0.5
SCALE: Final = 1 << 20  # shares of the vector are rounded to one part in this


def make_plan(
    contributors: Collection[PeerId],
    followers: Collection[PeerId],
    links: Mapping[PeerId, PeerLinks],
    num_values: int,
    wan_bytes_per_value: float = 4.0,
    lan_bytes_per_value: float = 4.0,
) -> Plan:
    """Plan the all-reduce of a vector of `num_values`.

    `contributors` are averaged, `followers` only receive; `links` may lack any of them. Takes
    milliseconds, after `preload`. Raises ValueError where there is no contributor.
    """
    payload = Payload(
        num_values=num_values,
        wan_bytes_per_value=wan_bytes_per_value,
        lan_bytes_per_value=lan_bytes_per_value,
    )
    peers = sorted({*contributors, *followers})
    index = {peer: at for at, peer in enumerate(peers)}
    near = {peer: links[peer].near if peer in links else () for peer in peers}
    sites = [tuple(index[peer] for peer in site) for site in cluster(near)]
    return _planned(peers, sites, contributors, links, payload)


def make_butterfly(
    contributors: Collection[PeerId],
    followers: Collection[PeerId],
    links: Mapping[PeerId, PeerLinks],
    payload: Payload,
) -> Plan:
    """The plan that knows no sites: everybody sends to everybody. What forests are compared to."""
    peers = sorted({*contributors, *followers})
    sites = [(at,) for at in range(len(peers))]
    return _planned(peers, sites, contributors, links, payload)


def is_reasonable(
    plan: Plan,
    contributors: Collection[PeerId],
    links: Mapping[PeerId, PeerLinks],
    payload: Payload,
) -> bool:
    """Tell whether a plan takes not much longer than one of this peer's own would.

    For the first attempt of a round. Later ones are repairs of it, which a member repeats exactly
    (`plan.repair`). `links` is what peers have said of themselves; whoever has not heard of every
    contributor cannot judge, and finds everything reasonable.
    """
    if not {*contributors} <= links.keys():
        return True
    followers = {PeerId(peer) for peer in plan.peers} - {*contributors}
    own = make_plan(
        contributors,
        followers,
        links,
        payload.num_values,
        payload.wan_bytes_per_value,
        payload.lan_bytes_per_value,
    )
    if own.peers != plan.peers:
        return False
    limit_s = predict(own, contributors, links, payload).total_s * MOST_TIMES_SLOWER + SLACK_S
    return predict(plan, contributors, links, payload, sites=own.sites).total_s <= limit_s


def _planned(
    peers: Sequence[PeerId],
    sites: Sequence[Indices],
    contributors: Collection[PeerId],
    links: Mapping[PeerId, PeerLinks],
    payload: Payload,
) -> Plan:
    if not contributors:
        raise ValueError("a plan without anybody who contributes")
    crews = [
        Crew(
            tuple(at for at in site if peers[at] in contributors),
            tuple(at for at in site if peers[at] not in contributors),
        )
        for site in sites
    ]
    rates = resolve(peers, links)
    slices = solve(crews, rates, payload.wan_bytes_per_value, payload.lan_bytes_per_value)
    trees = _trees(crews, slices, rates, num_chunks(payload.num_values))
    return Plan(tuple(peers), tuple(sites), trees)


def _trees(
    crews: Sequence[Crew], slices: Slices, rates: Sequence[Rates], num: int
) -> tuple[Tree, ...]:
    """Cut `num` chunks into trees: a run of them for each root, cut where an owner changes."""
    counts = _root_counts(crews, slices, num)
    columns: list[Runs] = []
    for crew in crews:
        stop = 0
        runs: Runs = []
        hand = _owners(crew, slices, rates, counts, num)
        for root, count in counts.items():
            first, stop = stop, stop + count
            is_own = root in crew.contributors
            runs += [(stop, root)] if is_own else hand.take(first, stop)
        columns.append(runs)
    site_of = {peer: at for at, crew in enumerate(crews) for peer in crew.contributors}
    root_sites: Runs = []
    stop = 0
    for root, count in counts.items():
        stop += count
        root_sites.append((stop, site_of[root]))
    pieces = aligned(0, [*columns, root_sites])
    return tuple(Tree(first, stop, who[-1], who[:-1]) for first, stop, who in pieces)


def _root_counts(crews: Sequence[Crew], slices: Slices, num: int) -> dict[int, int]:
    """How many chunks each root averages, without those who average none; first sites' first.

    Chunks are shared out among sites first, so that a small vector is not all the first site's.
    """
    roots = [_scaled(slices.roots[peer] for peer in crew.contributors) for crew in crews]
    by_site = apportion(num, [sum(shares) for shares in roots])
    counts: dict[int, int] = {}
    for crew, shares, site_num in zip(crews, roots, by_site, strict=True):
        if site_num:
            parts = apportion(site_num, shares)
            counts |= {p: part for p, part in zip(crew.contributors, parts, strict=True) if part}
    return counts


def _owners(
    crew: Crew, slices: Slices, rates: Sequence[Rates], counts: Mapping[int, int], num: int
) -> HandOut:
    """Deals the chunks that have their roots elsewhere to the site's owners."""
    if not crew.contributors:
        fastest = max(rates[peer].down for peer in crew.followers)
        weights = _scaled(rates[peer].down / fastest for peer in crew.followers)
        return HandOut(crew.followers, weights, num)
    rooted = [counts.get(peer, 0) for peer in crew.contributors]
    owned = _scaled(slices.owned[peer] for peer in crew.contributors)
    weights = [max(0, num * o - SCALE * count) for o, count in zip(owned, rooted, strict=True)]
    return HandOut(crew.contributors, weights, num - sum(rooted))


def _scaled(shares: Iterable[float]) -> list[int]:
    return [round(SCALE * share) for share in shares]
