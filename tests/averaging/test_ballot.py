"""Votes: counted for plans that were seen, refused otherwise, bounded in every way."""

from __future__ import annotations

import msgspec
import pytest

from tests.averaging.makers import (
    certified,
    empty_chain,
    grow,
    peer,
    plan_after,
    result_after,
)
from tests.averaging.swarm import identity_of
from zoonet.averaging.ballot import MAX_RESULTS, Ballot
from zoonet.averaging.chain import Chain
from zoonet.averaging.messages import Certificate, RoundResult, Vote, cast_vote
from zoonet.crypto import sha256
from zoonet.errors import ProtocolViolation

THREE = ("ada", "bob", "cyd")
SLOTS = {"ada": ((6, 8),), "bob": ((8, 10),), "cyd": ((10, 12),)}


def founded() -> Chain:
    return grow(empty_chain(), *THREE)


def vote(name: str, result: RoundResult) -> Vote:
    return cast_vote(identity_of(name), result)


def ballot_of(chain: Chain) -> Ballot:
    ballot = Ballot()
    assert ballot.admit(chain, plan_after(chain, SLOTS)) is None
    return ballot


def test_more_than_half_make_the_certificate() -> None:
    chain = founded()
    ballot, result = ballot_of(chain), result_after(chain, THREE, slots=SLOTS)
    assert ballot.cast(chain, result, vote("ada", result)) is None
    assert ballot.cast(chain, result, vote("ada", result)) is None
    link = ballot.cast(chain, result, vote("cyd", result))
    assert link == certified(result, ["ada", "cyd"])
    chain.extend(link)


def test_votes_for_different_results_do_not_add_up() -> None:
    chain = founded()
    ballot = ballot_of(chain)
    for name, state in (("ada", b"\x01"), ("bob", b"\x02"), ("cyd", b"\x03")):
        result = result_after(chain, THREE, slots=SLOTS, state=state * 32)
        assert ballot.cast(chain, result, vote(name, result)) is None


def test_a_vote_may_come_before_its_plan() -> None:
    chain = founded()
    ballot, result = Ballot(), result_after(chain, THREE, slots=SLOTS)
    for name in ("ada", "bob"):
        assert ballot.cast(chain, result, vote(name, result)) is None
    assert ballot.admit(chain, plan_after(chain, SLOTS)) == certified(result, ["ada", "bob"])


def test_a_result_without_a_plan_that_was_seen_certifies_nothing() -> None:
    """One of the roster gives itself all the slots there are, as the only member."""
    chain = founded()
    ballot = ballot_of(chain)
    for result in (
        result_after(chain, ["ada"], slots={"ada": ((6, 1000),)}),
        result_after(chain, ["ada"], slots={"ada": ((6, 8),)}),
        result_after(chain, THREE, slots={"ada": ((6, 1000),)}),
    ):
        for name in THREE:
            if peer(name) in result.members:
                assert ballot.cast(chain, result, vote(name, result)) is None


def test_nobody_founds_a_job_by_a_vote_alone() -> None:
    chain = empty_chain()
    result = result_after(chain, ["dan"], slots={"dan": ((0, 1000),)})
    assert Ballot().cast(chain, result, vote("dan", result)) is None


@pytest.mark.parametrize("name", ["dan", "eve"])
def test_votes_of_strangers_are_refused(name: str) -> None:
    chain = founded()
    result = result_after(chain, THREE, slots=SLOTS)
    with pytest.raises(ProtocolViolation, match="not that of a member"):
        ballot_of(chain).cast(chain, result, vote(name, result))
    forged = result_after(chain, [*THREE, name], slots=SLOTS)
    with pytest.raises(ProtocolViolation, match="not that of a member"):
        ballot_of(chain).cast(chain, forged, vote(name, forged))


def test_forged_votes_are_refused() -> None:
    chain = founded()
    result = result_after(chain, THREE, slots=SLOTS)
    other = msgspec.structs.replace(result, state=b"\x09" * 32)
    for signature in (vote("bob", result).signature, vote("ada", other).signature, bytes(65)):
        with pytest.raises(ProtocolViolation, match="forged"):
            ballot_of(chain).cast(chain, result, Vote(peer("ada"), signature))


def test_the_next_round_starts_from_nothing() -> None:
    chain = founded()
    ballot, result = ballot_of(chain), result_after(chain, THREE, slots=SLOTS)
    ballot.cast(chain, result, vote("ada", result))
    chain.extend(certified(result, THREE))
    ballot.admit(chain, plan_after(chain, {"ada": ((12, 14),)}))
    assert len(ballot._results) == len(ballot._early) == 0


def test_a_plan_of_another_round_admits_nothing() -> None:
    chain, ballot = founded(), Ballot()
    assert ballot.admit(chain, plan_after(empty_chain(), SLOTS)) is None
    assert ballot._plans == []


def test_a_member_that_votes_for_a_thousand_results_fills_no_memory_and_stops_nobody() -> None:
    chain = founded()
    ballot, honest = ballot_of(chain), result_after(chain, THREE, slots=SLOTS)
    ballot.cast(chain, honest, vote("ada", honest))
    for number in range(1000):
        state = sha256(number.to_bytes(2, "big"))
        result = result_after(chain, THREE, slots=SLOTS, state=state)
        assert ballot.cast(chain, result, vote("cyd", result)) is None
    assert len(ballot._results) <= MAX_RESULTS
    assert isinstance(ballot.cast(chain, honest, vote("bob", honest)), Certificate)
