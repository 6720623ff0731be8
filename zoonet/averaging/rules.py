"""What a member requires of its coordinator, and everyone of a vote. Pure.

A coordinator decides much: who takes part, who trains what, whose work is averaged. What it may
not decide is written here; a plan or an attempt that breaks a rule costs it its turn.
"""

from __future__ import annotations

from typing import Final

from zoonet.averaging.chain import Chain
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.leases import most_slots
from zoonet.averaging.messages import MAX_FAILED, Attempt, Failure, Round, RoundResult, Share
from zoonet.averaging.plan import check_shape
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.ranges import Ranges, count, difference, is_normal, overlaps

SPARE_ATTEMPTS: Final = 4  # beside one for each member, whom it may leave out


def check_plan(plan: Round, coordinator: PeerId, chain: Chain, config: RoundsConfig) -> None:
    """Raise ProtocolViolation where this is no fair plan of the round after the chain's head."""
    if (plan.job_id, plan.index, plan.parent) != (chain.job_id, len(chain), chain.head):
        raise ProtocolViolation(coordinator, "a plan of another round")
    try:
        chain.check_members(plan.members, plan.joiners)
        chain.check_shares((*plan.leases, *plan.guests))
    except ProtocolViolation as error:
        raise ProtocolViolation(coordinator, f"a plan with {error.evidence}") from error
    order = chain.turns
    if coordinator not in plan.members or (order and order[plan.view % len(order)] != coordinator):
        raise ProtocolViolation(coordinator, "a plan of who is not the round's coordinator")
    if len(plan.members) + len(plan.joiners) > config.max_members:
        raise ProtocolViolation(coordinator, f"a plan of {len(plan.members)} members")
    guests = [lease.peer for lease in plan.guests]
    if guests != sorted(set(guests)) or not set(guests) <= set(plan.joiners):
        raise ProtocolViolation(coordinator, "a plan that leases to others than who joins")
    _check_fairness(plan, coordinator, count(chain.trainable), config)


def _check_fairness(plan: Round, coordinator: PeerId, num_free: int, config: RoundsConfig) -> None:
    most = most_slots(config.inner_steps, config.ahead)
    leases = (*plan.leases, *plan.guests)
    if any(count(lease.slots) > most for lease in leases):
        raise ProtocolViolation(coordinator, "a plan that leases more than a member can train")
    if any(lease.steps > count(lease.slots) for lease in leases):
        raise ProtocolViolation(coordinator, "a plan that asks for more than it leases")
    if any(lease.slots and not lease.steps for lease in leases):
        raise ProtocolViolation(coordinator, "a plan that leases slots and asks for none")
    has_idle = any(not lease.slots for lease in plan.leases)
    if has_idle and num_free >= most * len(plan.members):
        raise ProtocolViolation(coordinator, "a plan that leaves members without work")
    if not any(lease.slots for lease in plan.leases):
        raise ProtocolViolation(coordinator, "a plan without any work")


def check_attempt(
    attempt: Attempt,
    plan: Round,
    coordinator: PeerId,
    *,
    before: Attempt | None,
    mine: Share,
    root: bytes,
    num_parameters: int,
) -> None:
    """Raise ProtocolViolation where the attempt does not follow from the plan.

    `before` is the attempt before this one, as far as it is known here. `mine` and `root` are
    what this peer has reported to have done, and committed to.
    """
    same = (plan.job_id, plan.index, plan.view, plan.parent)
    if (attempt.job_id, attempt.index, attempt.view, attempt.parent) != same:
        raise ProtocolViolation(coordinator, "an attempt of another round")
    last = -1 if before is None else before.number
    if not last < attempt.number < len(plan.members) + SPARE_ATTEMPTS:
        raise ProtocolViolation(coordinator, f"an attempt {attempt.number} after {last}")
    check_contributions(attempt.contributions, plan, coordinator, failures=attempt.failures)
    if mine.slots and not attempt.contributions:
        raise ProtocolViolation(coordinator, "an attempt without work, though some was reported")
    if attempt.former:
        check_contributions(attempt.former, plan, coordinator)
    if {share.peer for share in attempt.former} & set(attempt.contributors):
        raise ProtocolViolation(coordinator, "a contributor that was left out")
    if len(attempt.roots) != len(attempt.contributions):
        raise ProtocolViolation(coordinator, "contributions without commitments")
    for share, committed in zip(attempt.contributions, attempt.roots, strict=True):
        if share.peer == mine.peer and (share != mine or committed != root):
            raise ProtocolViolation(coordinator, "an attempt with other work than was reported")
    if set(attempt.plan.peers) != {*plan.members, *plan.joiners}:
        raise ProtocolViolation(coordinator, "an all-reduce among others than the round's")
    if attempt.contributions:
        check_shape(attempt.plan, num_parameters, attempt.contributors, coordinator)
    if before is not None:
        _check_successor(attempt, before, coordinator)


def _check_successor(attempt: Attempt, before: Attempt, coordinator: PeerId) -> None:
    """An attempt after another one leaves somebody out, and changes nothing else."""
    known = dict(zip(before.contributions, before.roots, strict=True))
    now = dict(zip(attempt.contributions, attempt.roots, strict=True))
    if not now.items() <= known.items():
        raise ProtocolViolation(coordinator, "an attempt with more than the one before")
    if set(attempt.former) != set(before.former) | (known.keys() - now.keys()):
        raise ProtocolViolation(coordinator, "an attempt that forgets who was left out")
    if attempt.failures != before.failures or not attempt.contributions:
        raise ProtocolViolation(coordinator, "an attempt with other failures, or without work")
    if attempt.plan.sites != before.plan.sites:
        raise ProtocolViolation(coordinator, "an attempt that moves peers to other sites")


def is_failure_in(failure: Failure, plan: Round, trained: Ranges) -> bool:
    """Tell whether it is its peer's word about its lease in this round, beside what it trained."""
    leased = plan.slots_of(PeerId(failure.peer))
    return (
        is_normal(failure.slots)
        and 0 < count(failure.slots) <= MAX_FAILED
        and not difference(failure.slots, leased)
        and not overlaps(failure.slots, trained)
        and failure.is_of(plan.job_id, plan.parent)
    )


def check_contributions(
    shares: tuple[Share, ...],
    plan: Round,
    culprit: str,
    failures: tuple[Failure, ...] = (),
) -> None:
    """Raise ProtocolViolation unless these take part, in order, each with slots of its lease.

    Nobody has to contribute where `failures` say why.
    """
    trained = {share.peer: share.slots for share in shares}
    reporters = [failure.peer for failure in failures]
    if reporters != sorted(set(reporters)):
        raise ProtocolViolation(culprit, "failures that are doubled or out of order")
    if not all(is_failure_in(one, plan, trained.get(one.peer, ())) for one in failures):
        raise ProtocolViolation(culprit, "failures on slots that were not leased, or unsigned")
    peers = [share.peer for share in shares]
    if not peers and failures:
        return
    if not peers or peers != sorted(set(peers)) or not plan.contributors.issuperset(peers):
        raise ProtocolViolation(culprit, "contributors that are no members")
    for share in shares:
        leased = plan.slots_of(PeerId(share.peer))
        if not share.slots or not is_normal(share.slots) or difference(share.slots, leased):
            raise ProtocolViolation(culprit, "contributions of slots that were not leased")


def follows(result: RoundResult, plan: Round) -> bool:
    """Tell whether a result is one that this plan can have led to."""
    head = (result.job_id, result.index, result.view, result.parent)
    if head != (plan.job_id, plan.index, plan.view, plan.parent):
        return False
    if (result.members, result.joiners) != (plan.members, plan.joiners):
        return False
    try:
        check_contributions(result.contributions, plan, "", result.failures)
    except ProtocolViolation:
        return False
    return True
