"""The plan: its chunks, its shape, and what becomes of it when peers are lost."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.forests import Forest, everyone_is_served, forests, names
from zoonet.averaging.apportion import HandOut, aligned, apportion
from zoonet.averaging.plan import (
    MAX_TREES,
    Plan,
    Tree,
    check_shape,
    chunk_bounds,
    members_by_index,
    num_chunks,
    repair,
)
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation

CHUNK = 16 * 1024
P = names(16)


def butterfly(num_peers: int, chunks_each: int) -> Plan:
    """Everybody in one site, with a tree of so many chunks for each."""
    trees = (Tree(i * chunks_each, (i + 1) * chunks_each, 0, (i,)) for i in range(num_peers))
    return Plan(tuple(P[:num_peers]), (tuple(range(num_peers)),), tuple(trees))


def two_sites() -> Plan:
    """Sites (0, 1, 2) and (3, 4, 5): three trees rooted in each, over 24 chunks."""
    trees = (Tree(4 * i, 4 * i + 4, i // 3, (i % 3, 3 + i % 3)) for i in range(6))
    return Plan(tuple(P[:6]), ((0, 1, 2), (3, 4, 5)), tuple(trees))


def owned(plan: Plan) -> Counter[int]:
    """Chunks that each peer owns."""
    found: Counter[int] = Counter()
    for tree in plan.trees:
        for owner in tree.owners:
            found[owner] += tree.stop - tree.first
    return found


# --- chunks -------------------------------------------------------------------------------------


@given(st.integers(1, 3_000_000_000))
def test_chunks_cover_the_vector_without_gaps(num_values: int) -> None:
    last = num_chunks(num_values) - 1
    assert chunk_bounds(num_values, 0)[0] == 0
    assert chunk_bounds(num_values, last)[1] == num_values
    middle = last // 2
    assert chunk_bounds(num_values, middle)[1] == min(num_values, (middle + 1) * size(num_values))


def size(num_values: int) -> int:
    start, stop = chunk_bounds(num_values, 0)
    return stop - start if num_chunks(num_values) > 1 else num_values


# --- sharing out --------------------------------------------------------------------------------


@given(st.integers(0, 5000), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40))
def test_apportioned_parts_add_up_and_are_off_by_less_than_one(
    total: int, weights: list[int]
) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        exact = total * weight / sum(weights) if any(weights) else total / len(weights)
        assert abs(part - exact) < 1 + 1e-9 * total
        assert part == 0 or weight > 0 or not any(weights)


def test_of_equal_remainders_the_first_comes_first() -> None:
    assert apportion(5, [1, 1, 1]) == [2, 2, 1]
    assert apportion(3, [0, 0]) == [2, 1]


def test_chunks_are_dealt_in_order_over_the_ends_of_trees() -> None:
    hand = HandOut([7, 8, 9], [1, 0, 1], 6)
    assert hand.take(10, 12) == [(12, 7)]
    assert hand.take(20, 24) == [(21, 7), (24, 9)]


def test_columns_are_cut_where_any_of_them_is() -> None:
    pieces = list(aligned(2, [[(6, 1)], [(3, 5), (6, 6)], [(4, 8), (6, 9)]]))
    assert pieces == [(2, 3, (1, 5, 8)), (3, 4, (1, 6, 8)), (4, 6, (1, 6, 9))]


# --- shape --------------------------------------------------------------------------------------


@given(forests())
def test_plans_of_any_shape_serve_everyone_and_survive_the_wire(forest: Forest) -> None:
    plan, num_values, contributors = forest
    check_shape(plan, num_values, contributors, "teller")
    everyone_is_served(plan, contributors, set())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan


GOOD = two_sites()
BAD = {
    "in no order": msgspec.structs.replace(GOOD, peers=GOOD.peers[::-1]),
    "one site": msgspec.structs.replace(GOOD, sites=((0, 1, 2), (2, 3, 4, 5))),
    "in no tree": msgspec.structs.replace(GOOD, trees=GOOD.trees[1:]),
    "in two": msgspec.structs.replace(GOOD, trees=(GOOD.trees[0], *GOOD.trees)),
    "of 20 chunks": msgspec.structs.replace(GOOD, trees=GOOD.trees[:-1]),
    "every site": msgspec.structs.replace(GOOD, trees=(Tree(0, 24, 0, (0,)),)),
    "of another site": msgspec.structs.replace(GOOD, trees=(Tree(0, 24, 0, (3, 4)),)),
    "owner that contributes nothing": msgspec.structs.replace(
        GOOD, trees=(Tree(0, 24, 0, (0, 5)),)
    ),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_plan_that_cannot_carry_every_chunk_is_refused_with_its_teller(problem: str) -> None:
    contributors = set(P[:5] if "contributes" in problem else P[:6])
    with pytest.raises(ProtocolViolation, match=problem) as caught:
        check_shape(BAD[problem], 24 * CHUNK, contributors, P[0])
    assert caught.value.peer == P[0]


def test_a_root_that_only_receives_is_refused() -> None:
    plan = Plan(tuple(P[:2]), ((0,), (1,)), (Tree(0, 1, 1, (0, 1)),))
    with pytest.raises(ProtocolViolation, match="root that contributes nothing"):
        check_shape(plan, CHUNK, {P[0]}, P[0])


# --- repair -------------------------------------------------------------------------------------


@given(forests(), st.data())
def test_after_any_losses_the_plan_is_whole_and_what_was_untouched_stands(
    forest: Forest, data: st.DataObject
) -> None:
    plan, num_values, contributors = forest
    lost: set[PeerId] = set()
    while True:
        expendable = [
            peer for peer in plan.peers if peer not in lost and contributors - {*lost, peer}
        ]
        if not expendable:
            break
        lost |= data.draw(st.sets(st.sampled_from(expendable), min_size=1, max_size=2))
        left = contributors - lost
        if not left:
            break
        repaired = repair(plan, lost, left)
        check_shape(repaired, num_values, left, "teller")
        everyone_is_served(repaired, left, lost)
        assert (repaired.peers, repaired.sites) == (plan.peers, plan.sites)
        gone = members_by_index(plan, lost)
        untouched = [tree for tree in plan.trees if not gone.intersection(tree.owners)]
        assert [tree for tree in repaired.trees if tree in untouched] == untouched
        assert repair(repaired, lost, left) == repaired
        plan = repaired


@given(forests())
def test_a_plan_without_losses_is_its_own_repair(forest: Forest) -> None:
    plan, _, contributors = forest
    assert repair(plan, (), contributors) == plan


def test_a_lost_slice_is_dealt_to_everyone_who_is_left() -> None:
    plan = butterfly(5, 12)
    repaired = repair(plan, {P[2]}, {*P[:5]} - {P[2]})
    assert owned(repaired) == {0: 15, 1: 15, 3: 15, 4: 15}
    assert [tree for tree in repaired.trees if tree in plan.trees] == [
        tree for tree in plan.trees if tree.root != 2
    ]


def test_a_lost_owner_of_many_trees_hands_no_single_one_everything() -> None:
    trees = [Tree(i, i + 1, 0, (0 if i < 6 else i % 4,)) for i in range(12)]
    plan = Plan(tuple(P[:4]), ((0, 1, 2, 3),), tuple(trees))
    repaired = repair(plan, {P[0]}, set(P[1:4]))
    before, after = owned(plan), owned(repaired)
    assert before == {0: 7, 1: 1, 2: 2, 3: 2}
    assert after == {1: 2, 2: 5, 3: 5}  # in proportion to what they had: 1, 2, 2


def test_who_is_lost_in_one_site_changes_nothing_in_another() -> None:
    repaired = repair(two_sites(), {P[4]}, {*P[:6]} - {P[4]})
    for tree in repaired.trees:
        assert tree.owners[0] == two_sites().trees[tree.first // 4].owners[0]
        assert tree.root_site == two_sites().trees[tree.first // 4].root_site
    assert owned(repaired) == {0: 8, 1: 8, 2: 8, 3: 12, 5: 12}


def test_a_site_with_followers_only_is_served_by_one_of_them() -> None:
    plan = Plan(tuple(P[:4]), ((0, 1), (2, 3)), (Tree(0, 8, 1, (0, 2)),))
    contributors = {P[0], P[1], P[2]}
    repaired = repair(plan, {P[2]}, contributors - {P[2]})
    assert repaired.trees == (Tree(0, 8, 0, (0, 3)),)


def test_roots_of_a_site_that_died_go_to_the_sites_that_are_left_by_turns() -> None:
    trees = [Tree(4 * i, 4 * i + 4, i, (0, 1, 2)) for i in range(3)]
    plan = Plan(tuple(P[:3]), ((0,), (1,), (2,)), tuple(trees))
    repaired = repair(plan, {P[0]}, {P[1], P[2]})
    assert [tree.root_site for tree in repaired.trees] == [1, 2, 1, 2]
    assert repaired.trees[:2] == (Tree(0, 2, 1, (0, 1, 2)), Tree(2, 4, 2, (0, 1, 2)))


def test_roots_of_a_site_that_died_go_to_others_in_proportion_to_theirs() -> None:
    ends = [8, 10, 16]
    trees = [
        Tree(a, b, i, (0, 1, 2)) for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    repaired = repair(Plan(tuple(P[:3]), ((0,), (1,), (2,)), tuple(trees)), {P[0]}, {P[1], P[2]})
    assert repaired.trees[:2] == (Tree(0, 2, 1, (0, 1, 2)), Tree(2, 8, 2, (0, 1, 2)))


def test_whoever_contributes_no_more_but_still_listens_holds_no_role() -> None:
    plan = butterfly(3, 4)
    repaired = repair(plan, (), {P[0], P[1]})
    assert owned(repaired) == {0: 6, 1: 6}


def test_a_plan_never_grows_over_its_limit_by_repairs() -> None:
    num = MAX_TREES // 2
    trees = [Tree(4 * i, 4 * i + 4, 0, (i % 2,)) for i in range(num)]
    trees += [Tree(4 * i, 4 * i + 4, 0, (2 + i % 14,)) for i in range(num, MAX_TREES)]
    plan = Plan(tuple(P), (tuple(range(16)),), tuple(trees))
    repaired = repair(plan, {P[0]}, set(P[1:]))
    assert len(repaired.trees) <= MAX_TREES
    check_shape(repaired, 4 * MAX_TREES * 256 * 1024, set(P[1:]), "teller")


def test_nobody_left_to_average_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="anybody"):
        repair(butterfly(2, 1), {P[0]}, {P[0]})
