"""Plans made by hand and at random, and what every plan must do."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from zoonet.averaging.plan import (
    Plan,
    Tree,
    members_by_index,
    num_chunks,
    parent_of,
    receivers_of,
    sources_of,
)
from zoonet.crypto import PeerId

Forest = tuple[Plan, int, frozenset[PeerId]]  # a plan, its number of values, its contributors


def names(num: int, site: str = "p") -> list[PeerId]:
    """Peers whose ids stand in the order of their numbers."""
    return [PeerId(f"{site}{number:03}") for number in range(num)]


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Any plan that passes `check_shape`: any sites, followers, owners and cuts."""
    peers = names(draw(st.integers(1, 9)))
    placed = draw(st.lists(st.integers(0, 3), min_size=len(peers), max_size=len(peers)))
    sites = tuple(
        tuple(index for index, at in enumerate(placed) if at == site) for site in sorted({*placed})
    )
    active = draw(st.sets(st.integers(0, len(peers) - 1), min_size=1))
    num_values = draw(st.integers(1, 40 * 16 * 1024))
    stop = num_chunks(num_values)
    cuts = draw(st.sets(st.integers(1, stop), max_size=6)) | {stop}
    trees, first = [], 0
    for cut in sorted(cuts):
        owners = tuple(
            draw(st.sampled_from([index for index in site if index in active] or list(site)))
            for site in sites
        )
        able = [number for number, owner in enumerate(owners) if owner in active]
        trees.append(Tree(first, cut, draw(st.sampled_from(able)), owners))
        first = cut
    contributors = frozenset(peers[index] for index in active)
    return Plan(tuple(peers), sites, tuple(trees)), num_values, contributors


def everyone_is_served(plan: Plan, contributors: Collection[PeerId], lost: set[PeerId]) -> None:
    """Assert that every chunk of who contributes is added up once, and that all get the mean."""
    active = members_by_index(plan, contributors)
    live = members_by_index(plan, set(plan.peers) - lost)
    for tree in plan.trees:
        added = sources_of(plan, tree, tree.root, active)
        for owner in [peer for peer in added if peer != tree.root]:
            inner = sources_of(plan, tree, owner, active)
            if inner:
                added.remove(owner)
                added += inner
        assert sorted(added) == sorted(active)
        reached = {tree.root}
        for peer in [tree.root, *receivers_of(plan, tree, tree.root)]:
            if peer in live:  # who is lost passes nothing on
                reached |= set(receivers_of(plan, tree, peer))
        assert live <= reached
        for peer in live - {tree.root}:
            parent = parent_of(plan, tree, peer)
            assert parent is not None and parent in live
            assert peer in receivers_of(plan, tree, parent)
