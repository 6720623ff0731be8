"""The plan of an all-reduce: which chunk of the vector climbs which tree. Pure.

The vector is cut into chunks. Runs of chunks belong to trees. In each tree every site has one
owner, to which its other peers send; the owner of the root's site is the root::

    up:    peer -> its site's owner -> root         each owner adds up its site first
    down:  root -> the other owners -> their peers  the root's bytes, unchanged

One site gives the butterfly; so does a site for every peer. Indices are into `Plan.peers`.

P = flat parameters
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct

from zoonet.averaging.apportion import HandOut, Runs, aligned
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.records.kinds import Natural

MAX_MEMBERS: Final = 256
MIN_CHUNK_VALUES: Final = 16 * 1024  # 64 KiB of fp32
MAX_CHUNK_VALUES: Final = 256 * 1024  # 1 MiB of fp32
CHUNK_STEP: Final = 4096  # chunks are multiples of this, which is what codecs work on
GOOD_NUM_CHUNKS: Final = 128  # enough to share out evenly and to keep pipes full
FEWEST_CHUNKS: Final = 16  # of a small vector, so that several peers share the work
MAX_TREES: Final = 1024

Peer = Annotated[str, Meta(max_length=64)]
Peers = Annotated[tuple[Peer, ...], Meta(max_length=MAX_MEMBERS)]
Index = Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)]
Indices = Annotated[tuple[Index, ...], Meta(max_length=MAX_MEMBERS)]


class Tree(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How the chunks [first, stop) travel: for each site its owner, and which site has the root."""

    first: Natural
    stop: Natural
    root_site: Index
    owners: Indices

    @property
    def root(self) -> int:
        """Index of the peer that averages these chunks."""
        return self.owners[self.root_site]


class Plan(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who takes part, where they are and which trees they form."""

    peers: Peers  # contributors and those who only receive, in the order of peer ids
    sites: Annotated[tuple[Indices, ...], Meta(max_length=MAX_MEMBERS)]
    trees: Annotated[tuple[Tree, ...], Meta(max_length=MAX_TREES)]

    def site_of(self, index: int) -> int:
        """Number of the site that the peer is in."""
        return next(number for number, site in enumerate(self.sites) if index in site)


def chunk_values(num_values: int) -> int:
    """How many values a chunk has, of a vector of so many. The last chunk may have fewer."""
    if num_values <= FEWEST_CHUNKS * MIN_CHUNK_VALUES:
        return max(1, -(-num_values // FEWEST_CHUNKS))
    even = -(-num_values // GOOD_NUM_CHUNKS)
    stepped = -(-even // CHUNK_STEP) * CHUNK_STEP
    return min(MAX_CHUNK_VALUES, max(MIN_CHUNK_VALUES, stepped))


def num_chunks(num_values: int) -> int:
    """How many chunks a vector of so many values has."""
    return -(-num_values // chunk_values(num_values))


def chunk_bounds(num_values: int, chunk: int) -> tuple[int, int]:
    """First and last + 1 value of a chunk."""
    size = chunk_values(num_values)
    return chunk * size, min(num_values, (chunk + 1) * size)


def parent_of(plan: Plan, tree: Tree, index: int) -> int | None:
    """Whom the peer sends its chunks of the tree to; None for the root."""
    owner = tree.owners[plan.site_of(index)]
    if index == tree.root:
        return None
    return tree.root if index == owner else owner


def sources_of(plan: Plan, tree: Tree, index: int, contributors: Collection[int]) -> list[int]:
    """Whose chunks the peer adds up, in order: itself, its site, and for a root the other owners.

    Empty where the peer owns nothing in this tree. `contributors` are indices.
    """
    site = plan.site_of(index)
    if tree.owners[site] != index:
        return []
    own_site = [peer for peer in plan.sites[site] if peer in contributors]
    if index != tree.root:
        return sorted(own_site)
    others = [
        tree.owners[number]
        for number, members in enumerate(plan.sites)
        if number != site and any(peer in contributors for peer in members)
    ]
    return sorted(own_site) + sorted(others)


def receivers_of(plan: Plan, tree: Tree, index: int) -> list[int]:
    """To whom the peer passes the tree's means."""
    site = plan.site_of(index)
    if tree.owners[site] != index:
        return []
    receivers = [peer for peer in plan.sites[site] if peer != index]
    if index == tree.root:
        receivers += [owner for number, owner in enumerate(tree.owners) if number != site]
    return sorted(receivers)


def givers_in(plan: Plan, tree: Tree) -> dict[PeerId, PeerId]:
    """From whom each peer gets the tree's means; the root makes them."""
    givers: dict[PeerId, PeerId] = {}
    for owner, site in zip(tree.owners, plan.sites, strict=True):
        givers.update({PeerId(plan.peers[at]): PeerId(plan.peers[owner]) for at in site})
        givers[PeerId(plan.peers[owner])] = PeerId(plan.peers[tree.root])
    del givers[PeerId(plan.peers[tree.root])]
    return givers


def check_shape(plan: Plan, num_values: int, contributors: Collection[str], teller: str) -> None:
    """Raise ProtocolViolation, blaming `teller`, unless the plan can carry every chunk."""
    if list(plan.peers) != sorted(set(plan.peers)) or not set(contributors) <= set(plan.peers):
        raise ProtocolViolation(teller, "a plan without all contributors, or in no order")
    placed = sorted(index for site in plan.sites for index in site)
    if placed != list(range(len(plan.peers))) or not all(plan.sites):
        raise ProtocolViolation(teller, "a plan in which not everyone has one site")
    stop = 0
    for tree in plan.trees:
        if tree.first != stop or tree.stop <= tree.first:
            raise ProtocolViolation(teller, "a plan with chunks in no tree, or in two")
        stop = tree.stop
        _check_tree(plan, tree, contributors, teller)
    if stop != num_chunks(num_values):
        raise ProtocolViolation(teller, f"a plan of {stop} chunks, not {num_chunks(num_values)}")


def _check_tree(plan: Plan, tree: Tree, contributors: Collection[str], teller: str) -> None:
    if len(tree.owners) != len(plan.sites) or tree.root_site >= len(plan.sites):
        raise ProtocolViolation(teller, "a tree that does not know every site")
    for owner, site in zip(tree.owners, plan.sites, strict=True):
        if owner not in site:
            raise ProtocolViolation(teller, "a tree whose owner is of another site")
        active = [index for index in site if plan.peers[index] in contributors]
        if active and owner not in active:
            raise ProtocolViolation(teller, "a tree with an owner that contributes nothing")
    if plan.peers[tree.root] not in contributors:
        raise ProtocolViolation(teller, "a tree with a root that contributes nothing")


def repair(plan: Plan, lost: Collection[str], contributors: Collection[str]) -> Plan:
    """Give the roles of lost peers to others of their site; the rest of the plan stands.

    `lost` is everyone lost so far, `contributors` is who is left to average; others only receive.
    The chunks of a lost owner are dealt to its site's contributors in proportion to what these
    own already: a lost slice becomes a small extra for everybody, not a standby's double load.
    In a site with nobody left but followers, they fan out. If it is the root's, other sites' owners
    become roots. Trees are cut where need be; those in which nobody is missing stay equal, and
    peers keep their indices. In integers only, so that every member can repeat it.

    Raises ValueError where nobody is left to average.
    """
    gone = members_by_index(plan, lost)
    active = members_by_index(plan, contributors) - gone
    if not active:
        raise ValueError("a plan without anybody who contributes")
    vacancies = _Vacancies(plan, gone, active)
    filled = [vacancies.filled(tree) for tree in plan.trees]
    trees = _cut(plan.trees, filled)
    if len(trees) > MAX_TREES:  # then whole trees change hands
        whole = [
            [[(tree.stop, runs[0][1])] for runs in columns]
            for tree, columns in zip(plan.trees, filled, strict=True)
        ]
        trees = _cut(plan.trees, whole)
    return Plan(plan.peers, plan.sites, trees)


class _Vacancies:
    """The roles that lost peers held, and who takes over which of their chunks."""

    def __init__(self, plan: Plan, gone: frozenset[int], active: frozenset[int]) -> None:
        self._heirs = [_heirs(site, gone, active) for site in plan.sites]
        # sites that can have a root
        self._able = [at for at, heirs in enumerate(self._heirs) if active.intersection(heirs)]
        owned: Counter[int] = Counter()
        rooted: Counter[int] = Counter()
        ownerless: Counter[int] = Counter()
        for tree in plan.trees:
            num_chunks = tree.stop - tree.first
            rooted[tree.root_site] += num_chunks
            for site, owner in enumerate(tree.owners):
                owned[owner] += num_chunks
                ownerless[site] += num_chunks if self._lacks_owner(tree, site) else 0
        self._owners = [
            HandOut(heirs, [owned[peer] for peer in heirs], ownerless[site])
            for site, heirs in enumerate(self._heirs)
        ]
        num_rootless = sum(num for site, num in rooted.items() if site not in self._able)
        self._root_sites = HandOut(self._able, [rooted[at] for at in self._able], num_rootless)

    def _lacks_owner(self, tree: Tree, site: int) -> bool:
        return bool(self._heirs[site]) and tree.owners[site] not in self._heirs[site]

    def filled(self, tree: Tree) -> list[Runs]:
        """For each site its owners of the tree's chunks, and last the sites of their roots."""
        columns = [
            self._owners[site].take(tree.first, tree.stop)
            if self._lacks_owner(tree, site)
            else [(tree.stop, owner)]
            for site, owner in enumerate(tree.owners)
        ]
        if tree.root_site in self._able:
            return [*columns, [(tree.stop, tree.root_site)]]
        return [*columns, self._root_sites.take(tree.first, tree.stop)]


def _heirs(site: Indices, gone: frozenset[int], active: frozenset[int]) -> list[int]:
    """Who can own chunks in a site: its contributors, else its followers, else nobody."""
    return sorted(active.intersection(site)) or sorted(set(site) - gone)


def _cut(trees: Sequence[Tree], filled: Sequence[Sequence[Runs]]) -> tuple[Tree, ...]:
    return tuple(
        Tree(first, stop, who[-1], who[:-1])
        for tree, columns in zip(trees, filled, strict=True)
        for first, stop, who in aligned(tree.first, columns)
    )


def members_by_index(plan: Plan, peers: Collection[str]) -> frozenset[int]:
    """Indices of these peers."""
    return frozenset(index for index, peer in enumerate(plan.peers) if PeerId(peer) in peers)
