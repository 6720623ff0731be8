"""Sites come from what peers say of each other; no liar chooses its own."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.forests import names
from zoonet.averaging.sites import cluster
from zoonet.crypto import PeerId

A, B = names(4, "a"), names(4, "b")


def all_near(*groups: list[PeerId]) -> dict[PeerId, set[PeerId]]:
    return {peer: set(group) - {peer} for group in groups for peer in group}


def test_peers_that_are_near_each_other_are_a_site() -> None:
    assert cluster(all_near(A, B)) == (tuple(A), tuple(B))


def test_nobody_near_makes_a_site_for_everyone() -> None:
    assert cluster(dict.fromkeys(A, ())) == tuple((peer,) for peer in A)


def test_a_liar_that_calls_everyone_near_stands_alone() -> None:
    liar = PeerId("liar")
    near = {**all_near(A, B), liar: {*A, *B}}
    assert cluster(near) == (tuple(A), tuple(B), (liar,))


def test_a_liar_and_one_accomplice_do_not_get_into_a_site_of_three() -> None:
    liar = PeerId("liar")
    near = {**all_near(A), liar: {*A}}
    near[A[0]].add(liar)
    sites = cluster(near)
    honest = next(site for site in sites if A[1] in site)
    assert {*A[1:]} <= {*honest}
    assert liar not in honest


def test_who_is_not_called_near_by_a_neighbour_of_its_own_is_no_neighbour() -> None:
    near = all_near(A)
    for peer in A[1:]:
        near[peer].discard(A[0])
    assert cluster(near) == ((A[0],), tuple(A[1:]))


def test_somebody_between_two_sites_does_not_make_them_one() -> None:
    between = PeerId("c-between")
    near = {**all_near(A, B), between: {*A, *B}}
    for peer in (*A, *B):
        near[peer].add(between)
    sites = cluster(near)
    assert sorted(len(site) for site in sites) == [4, 5]
    assert not any({*A} & {*site} and {*B} & {*site} for site in sites)


def test_one_measurement_that_is_missing_does_not_split_a_site() -> None:
    near = all_near(A)
    near[A[0]].discard(A[1])
    assert cluster(near) == (tuple(A),)


def test_strangers_in_what_is_said_do_not_matter() -> None:
    near = all_near(A)
    near[A[0]].add(PeerId("nobody"))
    assert cluster(near) == (tuple(A),)


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.randoms())
def test_everyone_has_one_site_whatever_is_said_and_in_whatever_order(
    pairs: set[tuple[int, int]], random: Random
) -> None:
    peers = names(10)
    near = {peer: {peers[b] for a, b in pairs if peers[a] == peer} for peer in peers}
    sites = cluster(near)
    assert sorted(itertools.chain(*sites)) == peers
    shuffled = list(near.items())
    random.shuffle(shuffled)
    assert cluster(dict(shuffled)) == sites
    for site in sites:
        for peer in site:
            others = {*site} - {peer}
            assert not others or any(o in near[peer] and peer in near[o] for o in others)
