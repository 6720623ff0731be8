"""Who is left out when members contradict each other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.averaging.blame import differing, to_leave_out

A, B, C, D, E = "ABCDE"
pairs_of_peers = st.sets(
    st.frozensets(st.sampled_from("ABCDEFGH"), min_size=1, max_size=2), max_size=12
)


def pairs(*names: str) -> set[frozenset[str]]:
    return {frozenset(name) for name in names}


def test_whom_everybody_accuses_is_left_out() -> None:
    assert to_leave_out(pairs("AD", "BD", "CD"), me=A) == {D}


def test_who_accuses_everybody_is_left_out() -> None:
    assert to_leave_out(pairs("DA", "DB", "DC"), me=A) == {D}


def test_in_doubt_between_two_both_go() -> None:
    assert to_leave_out(pairs("BC"), me=A) == {B, C}


def test_but_not_the_one_who_decides() -> None:
    assert to_leave_out(pairs("AB"), me=A) == {B}


def test_unless_several_say_so() -> None:
    assert to_leave_out(pairs("AB", "AC"), me=A) == {A}


def test_two_liars_do_not_bring_down_who_decides() -> None:
    assert to_leave_out(pairs("DA", "DB", "CA", "CB"), me=A) == {B, C, D}


def test_who_is_gone_accuses_itself() -> None:
    assert to_leave_out(pairs("D"), me=A) == {D}


@given(pairs_of_peers)
def test_every_pair_loses_one(accusations: set[frozenset[str]]) -> None:
    out = to_leave_out(accusations, me=A)
    assert all(pair & out for pair in accusations)
    assert out <= set().union(*accusations, frozenset())


@given(st.integers(1, 7), st.integers(0, 100))
def test_one_liar_never_costs_more_than_one_other(num_accused: int, seed: int) -> None:
    """Whatever a single peer says of however many, at most one honest peer goes with it."""
    accused = list("BCDEFGH")[:num_accused]
    out = to_leave_out({frozenset(("L", peer)) for peer in accused}, me=A)
    assert "L" in out and len(out) <= 2


def told(**slices: str) -> dict[str, tuple[bytes, ...]]:
    return {peer: tuple(form.encode() for form in forms) for peer, forms in slices.items()}


def flat(*makers: str) -> list[dict[str, str]]:
    """Everybody is given each slice by its maker."""
    return [{peer: maker for peer in makers if peer != maker} for maker in makers]


def test_a_slice_in_two_forms_points_to_its_maker() -> None:
    """D served x to A and B, and y to itself and C."""
    found = differing(told(A="abcx", B="abcx", C="abcy", D="abcy"), flat(A, B, C, D))
    assert found == {frozenset((A, D)), frozenset((B, D))}
    for me in "ABC":
        assert to_leave_out(found, me) == {D}


def test_even_if_it_served_the_other_form_to_one_only() -> None:
    found = differing(told(A="abcx", B="abcy", C="abcx", D="abcx"), flat(A, B, C, D))
    assert found == {frozenset((B, D))}


@pytest.mark.parametrize("claim", ["a", "x", "y"])
def test_who_changes_what_it_passes_on_goes_and_not_the_maker(claim: str) -> None:
    """A is a slice's maker, D passes it on to E, F and G, and tells one lie or the other."""
    by_way_of_d = {B: A, C: A, D: A, "E": D, "F": D, "G": D}
    slices = told(A="a", B="a", C="a", D=claim, E="x", F="x", G="x")
    out = to_leave_out(differing(slices, [by_way_of_d]), me=B)
    assert D in out
    assert out <= {A, D} and (claim == "x" or out == {D})


def test_a_maker_that_tells_nothing_gave_what_most_got() -> None:
    found = differing(told(A="a", B="a", C="y"), [{A: D, B: D, C: D}])
    assert found == {frozenset((C, D))}


def test_who_claims_that_all_slices_were_others_goes_alone() -> None:
    found = differing(told(A="abcd", B="abcd", C="wxyz", D="abcd"), flat(A, B, C, D))
    assert to_leave_out(found, me=A) == {C}


def test_the_same_slices_accuse_nobody() -> None:
    assert differing(told(A="abcd", B="abcd"), flat(A, B, C, D)) == set()


def test_words_without_all_slices_say_nothing() -> None:
    assert differing(told(A="abcd", B="", C="abc"), flat(A, B, C, D)) == set()


def test_the_order_in_which_words_came_does_not_matter() -> None:
    words = told(A="abcx", B="abcy", C="abcx", D="abcy")
    outcomes = {
        frozenset(differing(dict(order), flat(A, B, C, D)))
        for order in itertools.permutations(words.items())
    }
    assert len(outcomes) == 1
