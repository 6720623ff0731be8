"""What a coordinator may not decide, and which results a plan can lead to."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from tests.averaging.forest import sited
from tests.averaging.makers import empty_chain, grow, peer, peers, plan_after, result_after, shares
from tests.averaging.swarm import identity_of
from zoonet.averaging.chain import Chain
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.leases import lease, most_slots
from zoonet.averaging.messages import (
    MAX_RANGES,
    Attempt,
    Ready,
    Round,
    Share,
    report_failure,
)
from zoonet.averaging.plan import repair
from zoonet.averaging.rules import check_attempt, check_plan, follows
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.ranges import Ranges

THREE = ("ada", "bob", "cyd")
CONFIG = RoundsConfig(inner_steps=4)
SIZE, ROOT = 1000, b"r" * 32
LEASES: Mapping[str, Ranges] = {
    "ada": ((6, 10),),
    "bob": ((10, 14),),
    "cyd": ((14, 18),),
}


def founded() -> Chain:
    return grow(empty_chain(), *THREE, joiners=["eve"])


def turn_of(chain: Chain, view: int = 0) -> PeerId:
    order = chain.turns
    return order[view % len(order)]


def view_of(name: str) -> int:
    return founded().turns.index(peer(name))


def refused(plan: Round, why: str, *, coordinator: str = "ada") -> None:
    with pytest.raises(ProtocolViolation, match=why) as caught:
        check_plan(plan, peer(coordinator), founded(), CONFIG)
    assert caught.value.peer == peer(coordinator)


def plan(leases: Mapping[str, Ranges] = LEASES, **fields: object) -> Round:
    return plan_after(founded(), leases, view=view_of("ada"), **fields)


def test_a_fair_plan_is_followed() -> None:
    check_plan(plan(), peer("ada"), founded(), CONFIG)
    check_plan(plan(joiners=["dan"]), peer("ada"), founded(), CONFIG)


def test_what_honest_coordinators_plan_is_always_fair() -> None:
    for num_free in (1, 2, 3, 10, 95, 994):
        chain = founded()
        grow(chain, *THREE, slots={"ada": ((6, 1000 - num_free),)} if num_free < 994 else None)
        ready = {
            one: Ready(job_id=chain.job_id, length=0, head=bytes(32), view=0, slots_per_s=speed)
            for one, speed in zip(peers(*THREE), (0.0, 5.0, 90.0), strict=True)
        }
        made = plan_after(chain, {})
        made = msgspec.structs.replace(made, leases=lease(chain.free, ready, CONFIG.inner_steps))
        check_plan(made, turn_of(chain), chain, CONFIG)


def test_a_founding_plan_may_come_from_anyone_who_is_in_it() -> None:
    made = plan_after(empty_chain(), {"ada": ((0, 4),), "bob": ((4, 8),)})
    check_plan(made, peer("bob"), empty_chain(), CONFIG)
    with pytest.raises(ProtocolViolation, match="not the round's coordinator"):
        check_plan(made, peer("cyd"), empty_chain(), CONFIG)


@pytest.mark.parametrize(
    "fields", [{"job_id": "f" * 32}, {"index": 0}, {"index": 2}, {"parent": bytes(32)}]
)
def test_a_plan_of_another_round_is_refused(fields: dict[str, object]) -> None:
    refused(msgspec.structs.replace(plan(), **fields), "another round")


def test_out_of_turn_nobody_plans() -> None:
    refused(msgspec.structs.replace(plan(), view=view_of("bob")), "not the round's coordinator")
    refused(plan(), "not the round's coordinator", coordinator="bob")


def test_a_coordinator_plans_nobody_else_without_itself() -> None:
    refused(plan({"bob": ((6, 10),), "cyd": ((10, 14),)}), "not the round's coordinator")


def test_strangers_are_not_planned_as_members() -> None:
    refused(plan({**LEASES, "dan": ((18, 22),)}), "did not admit")


def test_members_in_disorder_are_refused() -> None:
    refused(msgspec.structs.replace(plan(), leases=plan().leases[::-1]), "out of order")


def test_joiners_that_are_no_peers_are_refused() -> None:
    refused(msgspec.structs.replace(plan(), joiners=("../../etc",)), "no peers")


def test_a_plan_of_more_than_the_job_allows_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="a plan of 3 members"):
        check_plan(plan(), peer("ada"), founded(), RoundsConfig(inner_steps=4, max_members=2))


def test_a_slot_is_not_leased_twice() -> None:
    refused(plan({"ada": ((6, 10),), "bob": ((9, 12),)}), "in two shares")


def test_slots_that_are_done_or_do_not_exist_are_not_leased() -> None:
    refused(plan({"ada": ((5, 9),)}), "done already")
    refused(plan({"ada": ((998, 1002),)}), "do not exist")


def test_malformed_leases_are_refused() -> None:
    refused(plan({"ada": ((9, 6),)}), "malformed")
    pieces = tuple((at, at + 1) for at in range(6, 6 + 2 * MAX_RANGES + 2, 2))
    long_chain = grow(empty_chain(100_000), *THREE, joiners=["eve"])
    made = plan_after(long_chain, {"ada": pieces})
    with pytest.raises(ProtocolViolation, match="too many pieces"):
        check_plan(made, turn_of(long_chain), long_chain, CONFIG)


def test_nobody_is_leased_more_than_it_can_train() -> None:
    most = most_slots(4)
    check_plan(plan({**LEASES, "ada": ((100, 100 + most),)}), peer("ada"), founded(), CONFIG)
    refused(plan({**LEASES, "ada": ((100, 101 + most),)}), "more than a member can train")


def test_nobody_is_left_without_work_while_there_is_plenty() -> None:
    refused(plan({**LEASES, "bob": ()}), "without work")
    refused(plan(dict.fromkeys(THREE, ())), "without work")


def test_towards_the_end_some_may_be_without_work_but_not_all() -> None:
    chain = grow(founded(), *THREE, slots={"bob": ((6, 998),)})
    made = plan_after(chain, {"ada": ((998, 1000),), "bob": (), "cyd": ()})
    check_plan(made, turn_of(chain), chain, CONFIG)
    with pytest.raises(ProtocolViolation, match="without any work"):
        check_plan(plan_after(chain, dict.fromkeys(THREE, ())), turn_of(chain), chain, CONFIG)


# --- attempts -----------------------------------------------------------------------------------


def attempt(slots: Mapping[str, Ranges] = LEASES, number: int = 0, **fields: object) -> Attempt:
    made = plan()
    return msgspec.structs.replace(
        Attempt(
            job_id=made.job_id,
            index=made.index,
            view=made.view,
            parent=made.parent,
            number=number,
            contributions=shares(slots),
            roots=(ROOT,) * len(slots),
            plan=sited(SIZE, tuple(LEASES), idle=set(LEASES) - set(slots)),
        ),
        **fields,
    )


def check(
    made: Attempt,
    *,
    carried: Ranges = LEASES["bob"],
    root: bytes = ROOT,
    before: Attempt | None = None,
) -> None:
    check_attempt(
        made,
        plan(),
        peer("ada"),
        before=before,
        mine=Share(peer("bob"), carried),
        root=root,
        num_parameters=SIZE,
    )


def after(first: Attempt, *names: str, **fields: object) -> Attempt:
    """The attempt after one, in which only these still contribute."""
    gone = [share for share in first.contributions if share.peer not in peers(*names)]
    contributions = tuple(share for share in first.contributions if share not in gone)
    made = msgspec.structs.replace(
        first,
        number=first.number + 1,
        contributions=contributions,
        roots=first.roots[: len(contributions)],
        plan=repair(first.plan, {share.peer for share in gone}, peers(*names)),
        former=tuple(gone),
    )
    return msgspec.structs.replace(made, **fields)


def not_followed(made: Attempt, why: str, **given: object) -> None:
    with pytest.raises(ProtocolViolation, match=why) as caught:
        check(made, **given)
    assert caught.value.peer == peer("ada")


def test_an_attempt_of_members_with_what_they_were_leased_is_followed() -> None:
    check(attempt())
    check(attempt({"ada": ((6, 7),), "cyd": ((15, 17),)}))
    check(after(attempt(), "ada", "cyd"), before=attempt())


@pytest.mark.parametrize(
    "fields", [{"job_id": "f" * 32}, {"index": 9}, {"view": 77}, {"parent": bytes(32)}]
)
def test_an_attempt_of_another_round_is_not_followed(fields: dict[str, object]) -> None:
    not_followed(attempt(**fields), "another round")


def test_attempts_go_up_and_come_to_an_end() -> None:
    not_followed(attempt(number=2), "an attempt 2 after 2", before=attempt(number=2))
    not_followed(attempt(number=1), "an attempt 1 after 2", before=attempt(number=2))
    not_followed(attempt(number=10**9), "an attempt 1000000000")


def test_contributors_are_members_in_order() -> None:
    not_followed(attempt(contributions=()), "no members")
    not_followed(attempt(contributions=attempt().contributions[::-1]), "no members")
    not_followed(attempt({"ada": ((6, 7),), "eve": ((7, 8),)}), "no members")


def test_contributions_are_of_leased_slots() -> None:
    not_followed(attempt({"ada": ((6, 11),)}), "not leased")
    not_followed(attempt({"ada": ()}), "not leased")
    not_followed(attempt({"ada": ((9, 6),)}), "not leased")


def test_who_has_reported_work_follows_no_attempt_without_any() -> None:
    made = plan()
    failed_on = ((6, 7),)
    failure = report_failure(identity_of("ada"), made.job_id, made.parent, failed_on)
    nothing = attempt(contributions=(), roots=(), failures=(failure,))
    check(nothing, carried=())
    not_followed(nothing, "without work, though some was reported")


def test_nobody_contributes_other_slots_in_my_name_than_i_reported() -> None:
    not_followed(attempt(), "other work than was reported", carried=((10, 12),))
    not_followed(attempt(), "other work than was reported", root=b"o" * 32)
    check(attempt({"ada": ((6, 10),)}), carried=((10, 12),))


def test_an_attempt_after_another_only_leaves_somebody_out() -> None:
    first = attempt({"ada": LEASES["ada"], "bob": LEASES["bob"]})
    check(after(first, "bob"), before=first)
    not_followed(attempt(number=1), "more than the one before", before=first)
    not_followed(after(first, "bob", former=()), "forgets who was left out", before=first)
    other = (b"o" * 32,)
    not_followed(after(first, "ada", roots=other), "more than the one before", before=first)
    elsewhere = sited(SIZE, ("bob",), ("ada", "cyd"), idle=("ada", "cyd"))
    not_followed(after(first, "bob", plan=elsewhere), "to other sites", before=first)
    twice = after(first, "bob", former=first.contributions)
    not_followed(twice, "that was left out", before=first)


def test_an_attempt_carries_every_chunk_and_every_commitment() -> None:
    not_followed(attempt(roots=()), "without commitments")
    not_followed(attempt(plan=sited(SIZE, ("ada", "bob"))), "among others than the round's")
    short = attempt().plan
    short = msgspec.structs.replace(short, trees=short.trees[:-1])
    not_followed(attempt(plan=short), "chunks")


# --- results ------------------------------------------------------------------------------------


def test_a_result_follows_from_its_own_plan_only() -> None:
    chain = founded()
    good = result_after(chain, THREE, slots=LEASES, view=plan().view)
    assert follows(good, plan())
    fewer = msgspec.structs.replace(good, contributions=shares({"ada": ((6, 8),)}))
    assert follows(fewer, plan())
    for wrong in (
        {"view": good.view + 1},
        {"index": 3},
        {"parent": bytes(32)},
        {"members": peers("ada", "bob")},
        {"joiners": peers("dan")},
        {"contributions": shares({"ada": ((6, 12),)})},
        {"contributions": shares({"ada": ((6, 1000),)})},
        {"contributions": ()},
    ):
        assert not follows(msgspec.structs.replace(good, **wrong), plan()), wrong
