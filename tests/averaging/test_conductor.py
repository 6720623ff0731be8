"""The coordinator's state machine, event by event, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.averaging.makers import empty_chain, peer, peers, plan_after
from tests.averaging.swarm import identity_of
from zoonet.averaging.conductor import (
    AskWhy,
    Conductor,
    GiveUp,
    Order,
    Patience,
    StartAttempt,
    StopTraining,
)
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import MAX_RANGES, Attempt, Lease, Voted, report_failure
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges

FOUR = ("ada", "bob", "cyd", "dan")
LEASES: dict[str, Ranges] = {name: ((4 * at, 4 * at + 4),) for at, name in enumerate(FOUR)}
PATIENCE = Patience()
ROOT = b"r" * 32
SAME, OTHER = b"s" * 32, b"o" * 32


def conductor(*names: str, me: str = "ada", usual_s: float = 0.0) -> Conductor:
    plan = plan_after(empty_chain(), {name: LEASES[name] for name in names or FOUR})
    return Conductor(plan, 0.0, peer(me), PATIENCE, usual_s, num_values=1000)


def done(lead: Conductor, name: str, now: float, slots: Ranges | None = None) -> list[Order]:
    return lead.on_done(peer(name), LEASES[name] if slots is None else slots, ROOT, now)


def all_done(lead: Conductor, now: float) -> Attempt:
    orders: list[Order] = []
    for member in lead.round.members:
        orders += lead.on_done(member, lead.round.slots_of(member), ROOT, now)
    return started(orders)


def started(orders: list[Order]) -> Attempt:
    (order,) = orders
    assert isinstance(order, StartAttempt)
    return order.attempt


def gave_up(orders: list[Order], why: str) -> GiveUp:
    (order,) = orders
    assert isinstance(order, GiveUp) and why in order.reason, order
    return order


def explained(lead: Conductor, name: str, now: float, forms: str) -> list[Order]:
    assert lead.attempt is not None
    digests = tuple(form.encode() * 32 for form in forms)
    return lead.on_explained(peer(name), lead.attempt.number, digests, now)


def voted(lead: Conductor, name: str, now: float, *, result: bytes = SAME) -> list[Order]:
    assert lead.attempt is not None
    said = Voted(number=lead.attempt.number, result=result)
    return lead.on_voted(peer(name), said, now)


def failed(lead: Conductor, name: str, now: float, *missing: str) -> list[Order]:
    assert lead.attempt is not None
    names = [peer(one) for one in missing]
    return lead.on_failed(peer(name), lead.attempt.number, names, now)


# --- training -----------------------------------------------------------------------------------


def test_when_everyone_is_done_all_are_averaged() -> None:
    lead = conductor()
    for name in FOUR[:3]:
        assert done(lead, name, 5.0) == []
    attempt = started(done(lead, "dan", 5.0))
    assert attempt.contributors == peers(*FOUR) and attempt.number == 0
    assert {share.peer: share.slots for share in attempt.contributions} == {
        peer(name): slots for name, slots in LEASES.items()
    }


def test_a_straggler_is_stopped_and_its_part_is_taken() -> None:
    lead = conductor()
    for name in FOUR[:3]:
        done(lead, name, 10.0)
    assert lead.on_time(14.9) == []
    assert lead.on_time(15.1) == [StopTraining(peer("dan"))]
    assert lead.on_time(15.6) == []
    attempt = started(done(lead, "dan", 16.0, ((12, 13),)))
    assert attempt.contributions[list(attempt.contributors).index(peer("dan"))].slots == ((12, 13),)


def test_a_straggler_that_does_not_stop_is_left_out() -> None:
    lead = conductor()
    for name in FOUR[:3]:
        done(lead, name, 10.0)
    lead.on_time(15.1)
    assert lead.on_time(15.0 + PATIENCE.stop_s) == []
    attempt = started(lead.on_time(15.2 + PATIENCE.stop_s))
    assert attempt.contributors == peers("ada", "bob", "cyd")
    assert done(lead, "dan", 99.0) == []


def test_a_lost_member_is_not_waited_for_and_may_come_back() -> None:
    lead = conductor()
    for name in ("ada", "bob"):
        done(lead, name, 5.0)
    assert lead.on_lost(peer("dan"), 6.0) == []
    lead.on_back(peer("dan"))
    assert done(lead, "cyd", 7.0) == []
    assert started(done(lead, "dan", 7.0)).contributors == peers(*FOUR)


def test_without_most_of_its_members_a_round_is_given_up() -> None:
    lead = conductor()
    assert lead.on_lost(peer("dan"), 1.0) == []
    gave_up(lead.on_lost(peer("cyd"), 1.0), "2 of 4 members are lost")


def test_slots_that_were_not_leased_are_not_averaged() -> None:
    lead = conductor()
    for name in FOUR[:3]:
        done(lead, name, 5.0)
    for wrong in (((0, 4),), ((12, 17),), ((14, 12),), ()):
        other = conductor()
        for name in FOUR[:3]:
            done(other, name, 5.0)
        assert started(done(other, "dan", 5.0, wrong)).contributors == peers("ada", "bob", "cyd")


def test_a_stranger_is_never_done() -> None:
    lead = conductor("ada", "bob")
    assert lead.on_done(peer("cyd"), ((0, 4),), ROOT, 1.0) == []
    assert lead.done == {}


def test_who_is_done_with_nothing_at_once_does_not_make_stragglers_of_others() -> None:
    lead = conductor(usual_s=10.0)
    for name in ("cyd", "dan"):
        done(lead, name, 0.01, ())
    assert lead.on_time(9.0) == []
    assert lead.on_time(14.0) == []


def test_who_claims_to_be_done_at_once_does_not_stop_others_before_their_time() -> None:
    lead = conductor(usual_s=10.0)
    for name in ("bob", "cyd", "dan"):
        done(lead, name, 0.01)
    assert lead.on_time(14.9) == []
    assert lead.on_time(15.1) == [StopTraining(peer("ada"))]


def test_most_members_never_done_do_not_hold_the_round_for_ever() -> None:
    lead = conductor(usual_s=10.0)
    done(lead, "ada", 10.0)
    assert lead.on_time(100.0) == []
    assert lead.on_time(130.0) == [StopTraining(peer(name)) for name in names_of(lead)[1:]]
    assert started(lead.on_time(136.0)).contributors == peers("ada")


def names_of(lead: Conductor) -> list[str]:
    """ada first, then the others as the round lists them."""
    others = [name for name in FOUR if name != "ada"]
    return ["ada", *sorted(others, key=lambda name: lead.round.members.index(peer(name)))]


def test_a_coordinator_that_hangs_is_stopped_like_anyone() -> None:
    lead = conductor()
    for name in ("bob", "cyd", "dan"):
        done(lead, name, 10.0)
    assert lead.on_time(15.1) == [StopTraining(peer("ada"))]


def test_if_nobody_has_anything_the_round_is_given_up() -> None:
    lead = conductor("ada", "bob")
    done(lead, "ada", 1.0, ())
    gave_up(done(lead, "bob", 1.0, ()), "nobody is left who contributes")


# --- averaging ----------------------------------------------------------------------------------


def test_whom_all_miss_is_left_out_of_the_next_attempt() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert failed(lead, "ada", 6.0, "dan") == []
    attempt = started(lead.on_lost(peer("dan"), 6.1))
    assert (attempt.number, attempt.contributors) == (1, peers("ada", "bob", "cyd"))


def test_the_next_attempt_does_not_wait_for_ever_for_reports() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    failed(lead, "ada", 6.0, "dan")
    assert lead.on_time(7.0) == []
    assert started(lead.on_time(7.1)).contributors == peers("ada", "bob", "cyd")


def test_where_one_word_stands_against_another_a_third_one_is_awaited_for_longer() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    failed(lead, "bob", 6.0, "dan")
    assert lead.on_time(6.0 + PATIENCE.doubt_s) == []
    assert started(lead.on_time(6.1 + PATIENCE.doubt_s)).contributors == peers("ada", "cyd")


def test_whom_two_miss_and_nobody_contradicts_is_left_out_without_more_reports() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert failed(lead, "bob", 6.0, "dan") == []
    attempt = started(failed(lead, "cyd", 6.1, "dan"))
    assert attempt.contributors == peers("ada", "bob", "cyd")


def test_even_if_it_has_said_the_same_of_one_of_them() -> None:
    """A line that has become slow is so in both directions."""
    lead = conductor()
    all_done(lead, 5.0)
    assert failed(lead, "dan", 6.0, "cyd") == []
    assert failed(lead, "cyd", 6.0, "dan") == []
    assert started(failed(lead, "bob", 6.1, "dan")).contributors == peers("ada", "bob", "cyd")


def test_where_two_are_named_all_reports_are_awaited() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert failed(lead, "bob", 6.0, "dan", "cyd") == []
    assert failed(lead, "ada", 6.1, "dan") == []
    assert lead.on_time(6.9) == []


def test_who_accuses_everybody_is_left_out_itself() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    for name in ("ada", "bob", "cyd"):
        voted(lead, name, 6.0)
    assert lead.attempt is not None and lead.attempt.number == 0
    attempt = started(failed(lead, "dan", 6.0, "ada", "bob", "cyd"))
    assert attempt.contributors == peers("ada", "bob", "cyd")


def test_who_fails_and_accuses_nobody_is_left_out_itself() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert failed(lead, "dan", 6.0) == []
    assert started(lead.on_time(7.1)).contributors == peers("ada", "bob", "cyd")


def test_who_is_left_out_cannot_end_one_attempt_after_the_other() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    orders: list[Order] = []
    for now in range(6, 200, 2):
        failed(lead, "dan", now)
        orders = lead.on_time(now + 1.5)
        if orders and isinstance(orders[0], GiveUp):
            break
    assert not orders and lead.attempt is not None
    assert lead.attempt.contributors == peers("ada", "bob", "cyd")


def test_who_is_lost_is_left_out_as_soon_as_one_peer_misses_it() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert lead.on_lost(peer("dan"), 6.0) == []
    attempt = started(failed(lead, "bob", 6.0, "dan"))
    assert attempt.contributors == peers("ada", "bob", "cyd")
    assert [share.peer for share in attempt.former] == [peer("dan")]
    assert attempt.plan.sites == all_done(conductor(), 5.0).plan.sites


def test_who_is_quiet_to_the_coordinator_too_is_left_out_at_the_first_report() -> None:
    """One report alone would cost both, since nobody could tell who of the two is at fault."""
    lead = conductor()
    all_done(lead, 5.0)
    lead.quiet = frozenset(peers("dan"))
    attempt = started(failed(lead, "bob", 6.0, "dan"))
    assert attempt.contributors == peers("ada", "bob", "cyd")


def test_who_is_quiet_but_missed_by_nobody_stays() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    lead.quiet = frozenset(peers("dan"))
    assert lead.on_time(6.0) == []
    assert failed(lead, "bob", 6.0, "cyd") == []
    attempt = started(lead.on_time(6.1 + PATIENCE.doubt_s))
    assert attempt.contributors == peers("ada", "dan")


def test_who_is_lost_after_everyone_had_its_chunks_is_averaged_in() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    assert lead.on_lost(peer("dan"), 6.0) == []
    for name in ("ada", "bob", "cyd"):
        assert voted(lead, name, 6.5) == []
    assert lead.attempt is not None and peer("dan") in lead.attempt.contributors


def test_joiners_and_strangers_accuse_nobody() -> None:
    lead = conductor("ada", "bob")
    all_done(lead, 5.0)
    assert failed(lead, "cyd", 6.0, "bob") == []
    assert lead.on_time(9.0) == []


# --- guests -------------------------------------------------------------------------------------

GUESTS = ("eve", "fay")


def with_guests(*names: str) -> Conductor:
    lead = conductor(*names)
    guests = [Lease(one, ((100 + at, 101 + at),), 1) for at, one in enumerate(peers(*GUESTS))]
    lead.round = replace(lead.round, joiners=peers(*GUESTS), guests=tuple(guests))
    for guest in guests:
        lead.on_done(PeerId(guest.peer), guest.slots, ROOT, 1.0)
    return lead


def test_guests_that_fail_cost_one_attempt_and_then_they_are_all_out() -> None:
    lead = with_guests()
    assert set(all_done(lead, 5.0).contributors) == {*peers(*FOUR, *GUESTS)}
    failed(lead, "eve", 6.0)
    assert started(lead.on_time(7.1)).contributors == peers(*FOUR)
    failed(lead, "fay", 8.0)
    assert lead.on_time(20.0) == []


def test_what_guests_say_of_members_costs_no_member_its_place() -> None:
    lead = with_guests()
    all_done(lead, 5.0)
    failed(lead, "eve", 6.0, "bob")
    failed(lead, "fay", 6.0, "cyd")
    assert started(lead.on_time(7.1)).contributors == peers(*FOUR)


def test_a_member_that_misses_a_guest_stays() -> None:
    lead = with_guests()
    all_done(lead, 5.0)
    failed(lead, "bob", 6.0, "eve")
    assert started(lead.on_time(7.1)).contributors == peers(*FOUR)


def test_members_that_fail_are_left_out_beside_guests() -> None:
    lead = with_guests()
    all_done(lead, 5.0)
    failed(lead, "eve", 6.0)
    failed(lead, "bob", 6.0, "dan")
    failed(lead, "ada", 6.0, "dan")
    assert started(lead.on_time(7.1)).contributors == peers("ada", "bob", "cyd")


# --- words about other things -------------------------------------------------------------------


def every_other(num: int) -> Ranges:
    return tuple((at, at + 1) for at in range(0, 2 * num, 2))


@pytest.mark.parametrize(("more", "contributes"), [(0, True), (1, False)])
def test_who_reports_in_more_pieces_than_its_part_is_left_out(more: int, contributes: bool) -> None:
    plan = plan_after(empty_chain(10_000), {"ada": ((0, 4000),), "bob": ((4000, 8000),)})
    lead = Conductor(plan, 0.0, peer("ada"), num_values=1000)
    lead.on_done(peer("ada"), every_other(MAX_RANGES // 2 + more), ROOT, 1.0)
    attempt = started(lead.on_done(peer("bob"), ((4000, 8000),), ROOT, 1.0))
    assert (peer("ada") in attempt.contributors) is contributes
    assert sum(len(share.slots) for share in attempt.contributions) <= MAX_RANGES


def test_failures_count_as_pieces_too() -> None:
    plan = plan_after(empty_chain(10_000), {"ada": ((0, 4000),), "bob": ((4000, 8000),)})
    lead = Conductor(plan, 0.0, peer("ada"), num_values=1000)
    for name, start in (("ada", 0), ("bob", 4000)):
        slots = tuple((start + 2 * at, start + 2 * at + 1) for at in range(MAX_RANGES // 2))
        failed_on = ((start + 3001, start + 3002),)
        failure = report_failure(identity_of(name), plan.job_id, plan.parent, failed_on)
        orders = lead.on_done(peer(name), slots, ROOT, 1.0, failure)
    attempt = started(orders)
    assert attempt.contributors == peers("ada", "bob") and attempt.failures == ()


def test_while_somebody_is_not_done_no_round_is_said_to_be_impossible() -> None:
    """Its member would have to refuse a round in which nobody trained anything."""
    lead = conductor("ada", "bob", usual_s=1.0)
    failure = report_failure(identity_of("ada"), lead.round.job_id, lead.round.parent, ((0, 1),))
    lead.on_done(peer("ada"), (), ROOT, 1.0, failure)
    assert lead.on_time(20.0) == [StopTraining(peer("bob"))]
    order = gave_up(lead.on_time(21.0 + PATIENCE.stop_s), "nobody is left who contributes")
    assert order.suspects == {peer("bob")}


def test_words_about_another_attempt_are_passed_over() -> None:
    lead = conductor()
    assert lead.on_failed(peer("ada"), 0, [peer("bob")], 1.0) == []
    assert lead.on_voted(peer("ada"), Voted(number=0, result=SAME), 1.0) == []
    all_done(lead, 5.0)
    assert lead.on_failed(peer("ada"), 1, [peer("bob")], 6.0) == []
    assert lead.on_voted(peer("ada"), Voted(number=7, result=SAME), 6.0) == []
    assert lead.pairs == set() and lead.votes == {}


def test_after_everyone_has_voted_no_failure_of_the_lost_starts_another_attempt() -> None:
    lead = conductor()
    all_done(lead, 5.0)
    for name in ("ada", "bob", "cyd"):
        assert voted(lead, name, 6.0) == []
    assert lead.on_lost(peer("dan"), 6.1) == []
    assert lead.on_time(6.5) == []


def test_votes_that_make_no_certificate_end_the_round_and_name_who_differs() -> None:
    lead = conductor("ada", "bob")
    all_done(lead, 5.0)
    voted(lead, "ada", 6.0)
    voted(lead, "bob", 6.0, result=OTHER)
    assert lead.on_time(6.0 + PATIENCE.certify_s) == []
    assert lead.on_time(6.1 + PATIENCE.certify_s) == [AskWhy(0)]
    assert lead.on_time(6.1 + PATIENCE.certify_s + PATIENCE.report_s) == []
    order = gave_up(lead.on_time(6.2 + PATIENCE.certify_s + PATIENCE.report_s), "different results")
    assert order.suspects == {peer("bob")}


def test_a_slice_in_two_forms_costs_its_reducer_and_the_round_goes_on() -> None:
    lead = conductor()
    plan = all_done(lead, 5.0).plan
    usual = "w" * len(plan.trees)
    by_dan = [plan.peers[tree.root] == peer("dan") for tree in plan.trees]
    other = "".join("x" if is_his else "w" for is_his in by_dan)
    for name, forms in (("ada", usual), ("bob", usual), ("cyd", other), ("dan", other)):
        voted(lead, name, 6.0, result=SAME if forms == usual else OTHER)
    assert lead.on_time(6.1 + PATIENCE.certify_s) == [AskWhy(0)]
    for name, forms in (("ada", usual), ("bob", usual), ("cyd", other)):
        assert explained(lead, name, 9.2, forms) == []
    attempt = started(explained(lead, "dan", 9.3, other))
    assert attempt.contributors == peers("ada", "bob", "cyd")


def test_whoever_changes_what_it_passes_on_is_left_out_and_not_those_who_made_it() -> None:
    """Dan owns chunks of its site, and its neighbours get other means than their makers gave."""
    sites = (("ada", "bob", "eve"), ("cyd", "dan", "fay"))
    leases = {name: ((4 * at, 4 * at + 4),) for at, name in enumerate(sum(sites, ()))}
    lead = Conductor(
        plan_after(empty_chain(), leases),
        0.0,
        peer("ada"),
        num_values=1000,
        links={peer(name): PeerLinks(near=peers(*site)) for site in sites for name in site},
    )
    plan = all_done(lead, 5.0).plan
    assert len(plan.sites) == 2
    passed_on = [
        peer("dan") in {PeerId(plan.peers[at]) for at in tree.owners}
        and PeerId(plan.peers[tree.root]) in peers(*sites[0])
        for tree in plan.trees
    ]
    assert any(passed_on)
    usual = "w" * len(plan.trees)
    other = "".join("x" if is_changed else "w" for is_changed in passed_on)
    forms = {name: other if name in ("cyd", "fay") else usual for name in sum(sites, ())}
    for name, form in forms.items():
        voted(lead, name, 6.0, result=SAME if form == usual else OTHER)
    assert lead.on_time(6.1 + PATIENCE.certify_s) == [AskWhy(0)]
    *_, last = [explained(lead, name, 9.2, form) for name, form in forms.items()]
    assert started(last).contributors == peers("ada", "bob", "cyd", "eve", "fay")


def test_who_does_not_vote_long_after_the_others_is_suspected() -> None:
    lead = conductor("ada", "bob")
    all_done(lead, 5.0)
    voted(lead, "ada", 10.0)
    assert lead.on_time(29.9) == []
    assert gave_up(lead.on_time(30.1), "do not vote").suspects == {peer("bob")}


def test_a_vote_at_once_does_not_hurry_the_others() -> None:
    lead = conductor("ada", "bob")
    all_done(lead, 5.0)
    voted(lead, "bob", 5.001)
    assert lead.on_time(500.0) == []


def test_a_vote_counts_once_and_from_members_only() -> None:
    lead = conductor("ada", "bob")
    all_done(lead, 5.0)
    voted(lead, "bob", 6.0)
    voted(lead, "bob", 6.0, result=OTHER)
    voted(lead, "cyd", 6.0, result=OTHER)
    assert {one: said.result for one, said in lead.votes.items()} == {peer("bob"): SAME}


events = st.lists(
    st.tuples(
        st.sampled_from(["done", "lost", "back", "failed", "voted", "time"]),
        st.sampled_from(FOUR),
        st.sampled_from([*FOUR, "eve"]),
        st.integers(0, 3),
        st.floats(0.0, 20.0),
    ),
    max_size=60,
)


@given(events)
def test_whatever_happens_attempts_hold_live_members_with_their_own_slots(
    story: list[tuple[str, str, str, int, float]],
) -> None:
    lead, now = conductor(), 0.0
    last = -1
    for kind, name, other, number, passes_s in story:
        now += passes_s
        match kind:
            case "done":
                orders = done(lead, name, now)
            case "lost":
                orders = lead.on_lost(peer(name), now)
            case "back":
                lead.on_back(peer(name))
                orders = []
            case "failed":
                orders = lead.on_failed(peer(name), number, [peer(other)], now)
            case "voted":
                orders = lead.on_voted(peer(name), Voted(number=number, result=SAME), now)
            case _:
                orders = lead.on_time(now)
        for order in orders:
            if isinstance(order, StartAttempt):
                attempt = order.attempt
                assert attempt.number > last
                last = attempt.number
                assert not set(attempt.contributors) & (lead.lost | lead.left_out)
                for share in attempt.contributions:
                    assert share.slots == lead.round.slots_of(share.peer)
            elif isinstance(order, GiveUp):
                assert not order.suspects & {lead.me} and order.reason


@pytest.mark.parametrize("num_members", [1, 2, 3, 4])
def test_a_round_of_any_size_ends_well_when_all_goes_well(num_members: int) -> None:
    lead = conductor(*FOUR[:num_members])
    all_done(lead, 5.0)
    for name in FOUR[:num_members]:
        assert voted(lead, name, 6.0) == []
    assert lead.on_time(6.5) == []
