"""Every rule of the chain, refused by name; and which of two chains is followed."""

from __future__ import annotations

import copy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.makers import (
    NAMES,
    certified,
    empty_chain,
    grow,
    peer,
    peers,
    result_after,
    shares,
)
from tests.averaging.swarm import identity_of
from zoonet.averaging.chain import (
    Chain,
    Credit,
    assemble,
    coordinators,
    credits,
    genesis,
    has_quorum,
    idlers,
    replaces,
    split_of,
)
from zoonet.averaging.messages import (
    MAX_MEMBERS,
    MAX_RANGES,
    Certificate,
    RoundResult,
    Vote,
    cast_vote,
    report_failure,
)
from zoonet.crypto import Identity, sha256
from zoonet.errors import ProtocolViolation
from zoonet.ranges import count

THREE = ("ada", "bob", "cyd")


def founded() -> Chain:
    """A chain of one round of ada, bob and cyd, which let eve in."""
    return grow(empty_chain(), *THREE, joiners=["eve"])


def refused(chain: Chain, result: RoundResult, why: str) -> None:
    before = copy.deepcopy(chain)
    with pytest.raises(ProtocolViolation, match=why):
        chain.check_result(result)
    voters = [name for name in NAMES if peer(name) in result.members]
    with pytest.raises(ProtocolViolation, match=why):
        chain.extend(certified(result, voters))
    assert chain == before


def changed(chain: Chain, **fields: object) -> RoundResult:
    return msgspec.structs.replace(result_after(chain, THREE), **fields)


def test_a_chain_grows_by_certified_rounds() -> None:
    chain = founded()
    first = chain.head
    grow(chain, "ada", "bob", "eve")
    assert len(chain) == 2 and chain.head != first
    assert chain.roster == peers("ada", "bob", "eve")
    assert chain.done == ((0, 12),) and chain.num_done == 12
    assert chain.free == ((12, 1000),)
    assert not chain.is_finished


def test_heads_name_every_length() -> None:
    chain = grow(empty_chain(), *THREE, rounds=3)
    assert chain.head_at(0) == genesis(chain.job_id)
    assert [chain.head_at(length) for length in (1, 2, 3)] == chain.heads
    assert chain.copy_until(3) == chain
    assert chain.copy_until(2).done == ((0, 12),)
    assert chain.copy_until(0) == empty_chain()


def test_anyone_may_found_a_job() -> None:
    chain = empty_chain()
    chain.check_result(result_after(chain, ["dan"]))
    assert chain.roster == ()


def test_a_chain_that_has_every_slot_is_finished() -> None:
    assert grow(empty_chain(6), *THREE).is_finished


def test_another_job_is_refused() -> None:
    refused(founded(), changed(founded(), job_id="f" * 32), "another job")


@pytest.mark.parametrize("index", [0, 2, 2**60])
def test_another_index_is_refused(index: int) -> None:
    refused(founded(), changed(founded(), index=index), "does not follow")


def test_another_parent_is_refused() -> None:
    refused(founded(), changed(founded(), parent=bytes(32)), "does not follow")


def test_no_members_are_refused() -> None:
    refused(founded(), changed(founded(), members=()), "missing, doubled or out of order")


def test_doubled_and_unsorted_members_are_refused() -> None:
    members = peers(*THREE)
    for wrong in ((*members, members[-1]), members[::-1]):
        refused(founded(), changed(founded(), members=wrong), "missing, doubled or out of order")


def test_strangers_are_no_members() -> None:
    refused(founded(), result_after(founded(), ["ada", "dan"]), "did not admit")


def test_a_joiner_of_the_round_before_may_be_a_member() -> None:
    founded().check_result(result_after(founded(), ["eve"]))


def test_a_member_that_was_left_out_once_is_a_stranger_again() -> None:
    chain = grow(founded(), "ada", "bob")
    refused(chain, result_after(chain, THREE), "did not admit")


def test_doubled_joiners_and_joining_members_are_refused() -> None:
    dan = peer("dan")
    refused(founded(), changed(founded(), joiners=(dan, dan)), "joiners that are doubled")
    refused(founded(), changed(founded(), joiners=(peer("ada"),)), "or members")


def test_too_many_joiners_are_refused() -> None:
    crowd = sorted(Identity(sha256(str(n).encode())).peer_id for n in range(MAX_MEMBERS - 2))
    refused(founded(), changed(founded(), joiners=tuple(crowd)), "members and joiners")


@pytest.mark.parametrize("name", ["", "nobody", "1" * 53, "16Uiu2" + "z" * 47])
def test_names_that_are_no_peers_are_refused(name: str) -> None:
    refused(founded(), changed(founded(), joiners=(name,)), "no peers")


def test_contributions_are_those_of_members_in_order() -> None:
    good = result_after(founded(), THREE).contributions
    with_stranger = shares({"ada": ((80, 81),), "eve": ((90, 91),)})
    for wrong in ((), good[::-1], (good[0], good[0]), with_stranger):
        refused(founded(), changed(founded(), contributions=wrong), "not those of members")


def test_a_contribution_without_slots_is_refused() -> None:
    wrong = shares({"ada": (), "bob": ((6, 8),)})
    refused(founded(), changed(founded(), contributions=wrong), "without slots")


@pytest.mark.parametrize("slots", [((9, 8),), ((8, 8),), ((8, 9), (9, 10)), ((-2, 7),)])
def test_malformed_slots_are_refused(slots: tuple[tuple[int, int], ...]) -> None:
    refused(founded(), changed(founded(), contributions=shares({"ada": slots})), "malformed slots")


def test_slots_that_do_not_exist_are_refused() -> None:
    wrong = shares({"ada": ((990, 1001),)})
    refused(founded(), changed(founded(), contributions=wrong), "do not exist")


def test_slots_that_are_done_are_refused() -> None:
    wrong = shares({"ada": ((5, 7),)})
    refused(founded(), changed(founded(), contributions=wrong), "done already")


def test_a_slot_counts_once() -> None:
    wrong = shares({"ada": ((6, 9),), "bob": ((8, 10),)})
    refused(founded(), changed(founded(), contributions=wrong), "in two shares")


def test_shares_in_too_many_pieces_are_refused() -> None:
    pieces = tuple((at, at + 1) for at in range(0, 2 * (MAX_RANGES + 1), 2))
    chain = empty_chain(100_000)
    result = result_after(chain, ["ada"], slots={"ada": pieces})
    refused(chain, result, "too many pieces")


def test_half_of_the_votes_are_no_quorum() -> None:
    chain = empty_chain()
    for members, voters in ((("ada", "bob"), 1), (NAMES[:4], 2), (NAMES, 2), (("ada",), 0)):
        link = certified(result_after(chain, members), members[:voters])
        with pytest.raises(ProtocolViolation, match="no quorum"):
            chain.check(link)
        chain.check(certified(result_after(chain, members), members[: voters + 1]))


@given(st.integers(0, 300), st.integers(0, 300))
def test_two_quorums_of_one_round_share_a_member(num_votes: int, num_members: int) -> None:
    if has_quorum(num_votes, num_members):
        assert num_votes + num_votes > num_members


def test_votes_are_refused_that_are_doubled_forged_or_not_of_members() -> None:
    chain = empty_chain()
    result = result_after(chain, THREE)
    good = certified(result, THREE).votes
    wrong_digest = cast_vote_of("bob", msgspec.structs.replace(result, state=b"\x01" * 32))
    cases = [
        ((good[0], good[0], good[1]), "doubled"),
        ((*good[:2], cast_vote_of("dan", result)), "not those of members"),
        ((Vote(peer("ada"), good[1].signature), *good[1:]), "doubled|forged|not those"),
        ((*(v for v in good if v.peer != peer("bob")), wrong_digest), "forged"),
    ]
    for votes, why in cases:
        with pytest.raises(ProtocolViolation, match=why):
            chain.check(Certificate(result=result, votes=tuple(votes)))
        assert len(chain) == 0


def cast_vote_of(name: str, result: RoundResult) -> Vote:
    return cast_vote(identity_of(name), result)


def test_a_certificate_is_assembled_from_good_votes_only() -> None:
    result = result_after(empty_chain(), THREE)
    bad = Vote(peer("cyd"), bytes(65))
    assert assemble(result, [cast_vote_of("ada", result), bad]) is None
    link = assemble(result, [bad, cast_vote_of("bob", result), cast_vote_of("ada", result)])
    assert link is not None and [vote.peer for vote in link.votes] == list(peers("ada", "bob"))
    empty_chain().check(link)


# --- who coordinates, who is credited ---------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_everybody_has_a_turn_in_an_order_that_all_agree_on(head: bytes) -> None:
    order = coordinators(head, peers(*NAMES))
    assert sorted(order) == list(peers(*NAMES))
    assert coordinators(head, reversed(peers(*NAMES))) == order


def test_turns_fall_to_all_alike() -> None:
    first = [coordinators(sha256(bytes([n])), peers(*NAMES))[0] for n in range(200)]
    assert all(first.count(one) > 20 for one in peers(*NAMES))


def test_joiners_have_their_turn_after_all_members() -> None:
    """Whoever coordinates names the joiners: as many as it likes, of whom none need exist."""
    chain = grow(empty_chain(), "ada", "bob", joiners=["cyd", "dan", "eve"])
    assert sorted(chain.turns) == sorted(chain.roster)
    assert set(chain.turns[:2]) == set(peers("ada", "bob"))
    assert chain.turns[2:] == coordinators(chain.head, chain.turns[2:])
    assert empty_chain().turns == ()


def test_credit_is_what_the_chain_says() -> None:
    chain = grow(founded(), "ada", slots={"ada": ((6, 20),)})
    bob, cyd = (Credit(one, 1, 2) for one in peers("bob", "cyd"))
    assert credits(chain.certificates) == [Credit(peer("ada"), 2, 16), bob, cyd]
    only_three = credits(chain.certificates, min_members=3)
    assert sorted(only_three, key=lambda credit: credit.peer) == [
        Credit(one, 1, 2) for one in peers(*THREE)
    ]


def with_nothing_trained(chain: Chain) -> Chain:
    failure = report_failure(identity_of("ada"), chain.job_id, chain.head, ((900, 901),))
    result = result_after(chain, THREE, slots={})
    chain.extend(certified(msgspec.structs.replace(result, failures=(failure,)), THREE))
    return chain


def test_who_contributes_nothing_is_found_out_though_some_rounds_had_no_work() -> None:
    chain = grow(empty_chain(), *THREE)
    for _ in range(2):
        grow(chain, *THREE, slots={"ada": ((2 + len(chain) * 10, 4 + len(chain) * 10),)})
        with_nothing_trained(chain)
    assert idlers(chain, num_rounds=2, num_needed=10) == {*peers("bob", "cyd")}
    assert idlers(chain, num_rounds=3, num_needed=10) == set()
    for _ in range(9):
        with_nothing_trained(chain)
    assert idlers(chain, num_rounds=2, num_needed=10) == set()


# --- which chain is followed ------------------------------------------------------------------


def test_a_longer_chain_that_goes_on_where_ours_ends_is_followed() -> None:
    ours, theirs = founded(), grow(founded(), *THREE, rounds=2)
    assert split_of(theirs, ours) == 1
    assert replaces(theirs, ours) and not replaces(ours, theirs)
    assert not replaces(ours, founded())


def test_but_not_by_fewer_members_than_are_certifying_here() -> None:
    ours, theirs = founded(), grow(founded(), "ada", rounds=5)
    assert not replaces(theirs, ours, least_members=2)
    assert replaces(theirs, ours, least_members=1)


def test_at_a_split_more_members_win_whatever_the_slots() -> None:
    """One peer can certify with itself alone as much as it likes."""
    honest = grow(founded(), "bob", "cyd")
    forged = grow(founded(), "ada", slots={"ada": ((6, 1000),)})
    assert forged.is_finished
    assert replaces(honest, forged) and not replaces(forged, honest)


def test_then_more_slots_win_and_then_the_lower_digest() -> None:
    left = grow(founded(), "ada", "bob", rounds=2)
    right = grow(founded(), "bob", "cyd", rounds=1)
    assert replaces(left, right) and not replaces(right, left)
    right = grow(founded(), "bob", "cyd", rounds=2)
    low, high = sorted((left, right), key=lambda chain: chain.head)
    assert replaces(low, high) and not replaces(high, low)


@given(st.data())
def test_of_two_chains_that_split_exactly_one_is_followed(data: st.DataObject) -> None:
    groups = st.sampled_from([("ada",), ("bob",), ("ada", "bob"), THREE, ("bob", "cyd")])
    left, right = founded(), founded()
    for chain in (left, right):
        grow(chain, *data.draw(groups), rounds=1)
    if left.head != right.head:
        assert replaces(left, right) != replaces(right, left)
    else:
        assert not replaces(left, right)


def test_an_empty_chain_follows_any() -> None:
    assert replaces(founded(), empty_chain())
    assert not replaces(empty_chain(), founded())
    assert count(empty_chain().free) == 1000
