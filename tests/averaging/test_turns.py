"""Whose turn it is: views after a first round, and before it the founder to gather at."""

from __future__ import annotations

from tests.averaging.makers import empty_chain, grow, peer, peers
from zoonet.averaging.chain import coordinators
from zoonet.averaging.suspects import Suspects
from zoonet.averaging.turns import (
    AVOID_S,
    LONGEST_AVOID_S,
    MAX_AVOIDED,
    MAX_NO_PLANS,
    MAX_REFUSALS,
    TERM_S,
    Turns,
)
from zoonet.crypto import PeerId

NAMES = ("ada", "bob", "cyd", "dan")
ME = peer("ada")


def turns(*wanted: str, num_needed: int = 1) -> Turns:
    return Turns(ME, lambda: set(peers(*(wanted or NAMES))), Suspects(), num_needed=num_needed)


def founder_order() -> tuple[PeerId, ...]:
    return coordinators(empty_chain().head, peers(*NAMES))


def others() -> list[PeerId]:
    return [one for one in founder_order() if one != ME]


def test_views_go_through_the_roster_and_begin_anew_with_each_head() -> None:
    chain = grow(empty_chain(), *NAMES)
    mine = turns()
    seen = []
    for _ in range(5):
        seen.append(mine.coordinator(chain, 0.0, 0.0))
        mine.pass_on(is_next=True)
    assert tuple(seen[:4]) == chain.turns and seen[4] == seen[0]
    mine.start_over()
    assert mine.coordinator(chain, 0.0, 0.0) == chain.turns[0]


def test_suspects_have_no_turn_while_there_is_anybody_else() -> None:
    chain = grow(empty_chain(), *NAMES)
    mine = turns()
    for one in peers(*NAMES):
        mine.suspect(one, "it wasted a round", 0.0)
    assert mine.coordinator(chain, 1.0, 0.0) == ME
    assert mine.coordinator(chain, 1e6, 0.0) == ME, "the view only goes forward"


def test_founders_gather_at_the_first_of_those_who_want_the_job() -> None:
    assert turns().coordinator(empty_chain(), 0.0, 0.0) == founder_order()[0]
    assert turns("bob").coordinator(empty_chain(), 0.0, 0.0) in (ME, peer("bob"))


def test_a_founder_that_leads_to_nothing_is_passed_over_longer_each_time() -> None:
    mine, bob, now = turns("bob"), peer("bob"), 0.0
    lengths_s = []
    for _ in range(12):
        mine.avoid(bob, now)
        began = now
        while bob not in mine.founders(now):
            now += 0.5
        lengths_s.append(now - began)
    assert lengths_s[:4] == [AVOID_S, 2 * AVOID_S, 4 * AVOID_S, 8 * AVOID_S]
    assert lengths_s[-1] == LONGEST_AVOID_S


def test_one_of_many_that_leads_to_nothing_waits_until_the_others_had_a_visit() -> None:
    crowd = [f"crowd{number}" for number in range(40)]
    mine = turns("bob", *crowd)
    assert peer("bob") in mine.founders(0.0)
    mine.avoid(peer("bob"), 0.0)
    assert peer("bob") not in mine.founders(40 * AVOID_S)
    assert peer("bob") in mine.founders(41 * AVOID_S)


def test_nobody_passes_itself_over() -> None:
    mine = turns("bob")
    mine.avoid(ME, 0.0)
    mine.suspect(ME, "no reason", 0.0)
    assert ME in mine.founders(0.0)


def gathered_at(mine: Turns, num_terms: int = 60) -> list[PeerId]:
    """Where this peer goes in one term after the other."""
    chain = empty_chain()
    return [mine.coordinator(chain, 0.0, term * TERM_S) for term in range(num_terms)]


def wait_in_vain(mine: Turns, founder: PeerId, num_visits: int = MAX_NO_PLANS) -> None:
    for _ in range(num_visits):
        mine.keep_to(founder, 0.0)


def test_a_founder_without_a_plan_is_left_only_in_the_end_and_then_for_any_other() -> None:
    mine, first = turns(), founder_order()[0]
    wait_in_vain(mine, first, MAX_NO_PLANS - 1)
    assert set(gathered_at(mine)) == {first}
    wait_in_vain(mine, first, 1)
    assert set(gathered_at(mine)) == set(founder_order())
    assert gathered_at(mine)[::3] == 20 * [first], "newcomers go there"


def test_everybody_draws_the_same_founder_for_a_term() -> None:
    bob = Turns(peer("bob"), lambda: set(peers(*NAMES)), Suspects(), num_needed=1)
    mine = turns()
    for one in (mine, bob):
        wait_in_vain(one, founder_order()[0])
    assert gathered_at(mine) == gathered_at(bob)


def test_who_wants_the_job_under_many_names_is_not_drawn_more_often_than_they_are_many() -> None:
    crowd = [f"crowd{number}" for number in range(9)]
    mine = turns("bob", "cyd", *crowd)
    wait_in_vain(mine, PeerId("anybody"))
    honest = set(peers("ada", "bob", "cyd"))
    drawn = [founder for at, founder in enumerate(gathered_at(mine, 900)) if at % 3]
    assert 110 < sum(founder in honest for founder in drawn) < 190


def test_a_visit_to_another_founder_begins_the_count_anew() -> None:
    mine, (first, second, _) = turns(), others()
    wait_in_vain(mine, first, MAX_NO_PLANS - 1)
    wait_in_vain(mine, second, 1)
    wait_in_vain(mine, first, 1)
    assert set(gathered_at(mine)) == {founder_order()[0]}


def test_a_founder_that_cannot_have_a_plan_yet_is_not_left() -> None:
    mine = turns("bob", num_needed=3)
    wait_in_vain(mine, peer("bob"), 10 * MAX_NO_PLANS)
    assert len(set(gathered_at(mine))) == 1


def test_patience_with_refusals_ends_and_comes_back_with_the_next_turn() -> None:
    mine = turns()
    for _ in range(MAX_REFUSALS):
        mine.note_refusal()
    assert mine.has_patience
    mine.note_refusal()
    assert not mine.has_patience
    mine.pass_on(is_next=False)
    assert mine.has_patience


def test_a_crowd_of_names_is_not_remembered_for_ever() -> None:
    mine = turns("bob")
    mine.avoid(peer("bob"), 0.0)
    for number in range(MAX_AVOIDED):
        mine.avoid(PeerId(f"crowd{number}"), 0.0)
    assert peer("bob") in mine.founders(0.0)
