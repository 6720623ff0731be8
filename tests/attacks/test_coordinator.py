"""A member that misuses its turn to coordinate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.attacks.hostile import Attack, Hostile, Outcome, survive
from tests.averaging.makers import whole
from tests.averaging.swarm import NUM_PARAMETERS, identity_of
from zoonet.averaging.messages import (
    Attempt,
    Beat,
    Busy,
    Elsewhere,
    Lease,
    Ready,
    Round,
    Share,
    Start,
    Stop,
)
from zoonet.averaging.planner import make_plan
from zoonet.crypto import PeerId
from zoonet.transport import MAX_FRAME_BYTES, Stream

LOST_TURN_S = 60.0  # what one wasted turn may cost: a plan is waited for this long at most


def led(attack: Attack, **options: Any) -> Outcome:
    """The job with a member that misuses its turn, and is no member any more in the end."""
    outcome = survive(attack, members=(), turncoats=("mal",), **options)
    assert outcome.hostile[0].log, "its turn has never come"
    assert outcome.hostile[0].peer_id not in outcome.chain.last.members
    return outcome


async def say(hostile: Hostile, stream: Stream, *messages: msgspec.Struct) -> None:
    """Say it, then be alive for as long as the other side listens."""
    await hostile.tell(stream, *messages)
    await hostile.beat(stream)


# --- it withholds -----------------------------------------------------------------------------


def test_one_that_is_alive_and_plans_nothing_costs_one_turn() -> None:
    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(lambda me, stream, ready: me.beat(stream))

    outcome = led(attack)
    assert outcome.took_s < LOST_TURN_S + 30


def test_one_that_says_nothing_at_all_costs_its_silence() -> None:
    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(lambda me, stream, ready: asyncio.Event().wait())

    assert led(attack).took_s < 40


def test_one_that_hangs_up_costs_next_to_nothing() -> None:
    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(lambda me, stream, ready: asyncio.sleep(0))

    assert led(attack).took_s < 40


@pytest.mark.parametrize("after_rounds", [1, 2, 3, 4, 5])
def test_one_that_cannot_be_reached_in_time_costs_a_moment(after_rounds: int) -> None:
    """Opening the stream takes longer than anybody waits: this ended the whole peer once."""

    async def attack(hostile: Hostile) -> None:
        hostile.swarm.memory.faults.extra_delay_s[hostile.peer_id] = 30.0

    assert survive(attack, after_rounds=after_rounds).took_s < 60


def test_one_that_plans_and_then_never_averages_costs_a_learned_time() -> None:
    async def plan_only(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        await say(hostile, stream, hostile.planned(hostile.plan(ready)))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(plan_only)

    outcome = led(attack, num_slots=900, after_rounds=6)
    assert outcome.took_s < 180


# --- it sends others away ---------------------------------------------------------------------


@pytest.mark.parametrize("more", [-1, 0, 1, 10**9])
def test_one_that_always_stands_elsewhere_costs_a_moment(more: int) -> None:
    async def elsewhere(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        await hostile.tell(stream, Elsewhere(length=max(0, ready.length + more), head=bytes(32)))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(elsewhere)

    outcome = led(attack)
    assert outcome.took_s < 60


def test_one_that_is_always_busy_with_a_round_of_its_own_costs_a_moment() -> None:
    async def busy(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        await hostile.tell(stream, Busy(record=hostile.planned(hostile.plan(ready)).record))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(busy)

    outcome = led(attack)
    assert outcome.took_s < 60


def test_one_that_is_busy_with_a_round_that_nobody_plans_costs_nothing() -> None:
    """It makes up a plan of an honest peer, which it cannot sign."""

    async def busy(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        plan = hostile.plan(ready, view=1)
        await hostile.tell(stream, Busy(record=hostile.planned(plan).record))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(busy)

    assert led(attack).took_s < 40


# --- it plans nonsense --------------------------------------------------------------------------

Change = Callable[[Hostile, Round], Round]


def leases(change: Callable[[Lease, Hostile], Lease]) -> Change:
    def of(hostile: Hostile, plan: Round) -> Round:
        changed = tuple(change(lease, hostile) for lease in plan.leases)
        return msgspec.structs.replace(plan, leases=changed)

    return of


def fields(**given: object) -> Change:
    return lambda hostile, plan: msgspec.structs.replace(plan, **given)


NONSENSE: dict[str, Change] = {
    "no work for anyone": leases(lambda share, _: whole(share.peer, ())),
    "work for itself only": leases(
        lambda share, me: share if share.peer == me.peer_id else whole(share.peer, ())
    ),
    "all the work at once for each": leases(lambda share, me: whole(share.peer, me.chain.free)),
    "all the work at once for itself": leases(
        lambda share, me: whole(
            share.peer, me.chain.free if share.peer == me.peer_id else share.slots
        )
    ),
    "the same slots for all": lambda hostile, plan: msgspec.structs.replace(
        plan, leases=tuple(whole(one.peer, plan.leases[0].slots) for one in plan.leases)
    ),
    "slots that are done": leases(lambda share, _: whole(share.peer, ((0, 10),))),
    "slots that do not exist": leases(lambda share, _: whole(share.peer, ((10**6, 10**6 + 9),))),
    "slots backwards": leases(lambda share, _: whole(share.peer, ((9, 3),))),
    "more steps than slots": leases(lambda share, _: Lease(share.peer, share.slots, 11)),
    "slots and no steps": leases(lambda share, _: Lease(share.peer, share.slots, 0)),
    "huge numbers": leases(lambda share, _: whole(share.peer, ((0, 2**64 - 1),))),
    "a thousand pieces": leases(
        lambda share, _: whole(share.peer, tuple((n, n + 1) for n in range(0, 2000, 2)))
    ),
    "joiners that are no peers": fields(joiners=("", "x" * 64)),
    "members as joiners": lambda hostile, plan: msgspec.structs.replace(plan, joiners=plan.members),
    "members that are no peers": lambda hostile, plan: msgspec.structs.replace(
        plan, leases=(*plan.leases, whole("zzz", ()))
    ),
    "strangers as members": lambda hostile, plan: msgspec.structs.replace(
        plan,
        leases=tuple(
            sorted(
                (*plan.leases, whole(identity_of("stranger").peer_id, ())), key=lambda one: one.peer
            )
        ),
    ),
    "members twice": lambda hostile, plan: msgspec.structs.replace(
        plan, leases=(*plan.leases, plan.leases[-1])
    ),
    "nobody": fields(leases=()),
    "everyone but itself": lambda hostile, plan: msgspec.structs.replace(
        plan, leases=tuple(one for one in plan.leases if one.peer != hostile.peer_id)
    ),
    "another job": fields(job_id="f" * 32),
    "another round": fields(index=0),
    "another parent": fields(parent=bytes(32)),
    "another's turn": lambda hostile, plan: msgspec.structs.replace(plan, view=plan.view + 1),
    "a view far away": fields(view=999_999),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_plan_of_nonsense_is_not_followed(nonsense: str) -> None:
    async def plan(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        made = NONSENSE[nonsense](hostile, hostile.plan(ready))
        await say(hostile, stream, hostile.planned(made))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(plan)

    outcome = led(attack)
    assert outcome.took_s < 75  # 38 until it is given up, 15 for a first gathering without it


def test_one_that_plans_for_itself_alone_takes_nobody_with_it() -> None:
    """It could certify such a round with its own signature, and all the others after it."""

    async def alone(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        slots = ((hostile.chain.num_done, hostile.chain.num_done + 10),)
        made = hostile.plan(ready, leases=(whole(hostile.peer_id, slots),))
        await say(hostile, stream, hostile.planned(made))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(alone)

    outcome = led(attack)
    assert outcome.took_s < 60
    assert all(len(link.result.members) >= 3 for link in outcome.chain.certificates)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x91" * 5000, bytes(2**18), bytes(2**18 + 1), bytes(MAX_FRAME_BYTES)],
    ids=len,
)
def test_one_that_sends_garbage_costs_a_moment(frame: bytes) -> None:
    async def garbage(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        await stream.send(frame)
        await hostile.beat(stream)

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(garbage)

    outcome = led(attack)
    assert outcome.took_s < 60


@pytest.mark.parametrize("record", [b"", b"\xc1", bytes(60_000)], ids=len)
def test_one_whose_plan_is_no_record_costs_a_moment(record: bytes) -> None:
    async def garbage(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        planned = msgspec.structs.replace(hostile.planned(hostile.plan(ready)), record=record)
        await say(hostile, stream, planned)

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(garbage)

    assert led(attack).took_s < 60


# --- it misleads the attempts -------------------------------------------------------------------


def attempt(hostile: Hostile, plan: Round, number: int = 0, **given: Any) -> Attempt:
    mine = (Share(hostile.peer_id, plan.slots_of(hostile.peer_id)),)
    contributions: tuple[Share, ...] = given.pop("contributions", mine)
    contributors = [PeerId(share.peer) for share in contributions] or [hostile.peer_id]
    everyone = sorted({*plan.members, *map(PeerId, plan.joiners)})
    made = Attempt(
        job_id=plan.job_id,
        index=plan.index,
        view=plan.view,
        parent=plan.parent,
        number=number,
        contributions=contributions,
        roots=(bytes(32),) * len(contributions),
        plan=make_plan(contributors, everyone, {}, NUM_PARAMETERS),
    )
    return msgspec.structs.replace(made, **given)


MISLEADING: dict[str, Callable[[Hostile, Round], list[msgspec.Struct]]] = {
    "another's slots": lambda me, plan: [
        Start(
            attempt=attempt(
                me, plan, contributions=(Share(me.peer_id, (*plan.leases[0].slots, (290, 295))),)
            )
        )
    ],
    "nobody": lambda me, plan: [Start(attempt=attempt(me, plan, contributions=()))],
    "all slots": lambda me, plan: [
        Start(
            attempt=attempt(
                me, plan, contributions=tuple(Share(peer, me.chain.free) for peer in plan.members)
            )
        )
    ],
    "members in my name": lambda me, plan: [
        Start(
            attempt=attempt(
                me,
                plan,
                contributions=tuple(
                    Share(lease.peer, ((lease.slots[0][0], lease.slots[0][0] + 1),))
                    for lease in plan.leases
                ),
            )
        )
    ],
    "another round": lambda me, plan: [Start(attempt=attempt(me, plan, index=77))],
    "attempts without an end": lambda me, plan: [
        Start(attempt=attempt(me, plan, number)) for number in range(500)
    ],
    "the same attempt again": lambda me, plan: [Start(attempt=attempt(me, plan, 0))] * 500,
    "stops without an end": lambda me, plan: [Stop()] * 500,
    "beats without an end": lambda me, plan: [Beat()] * 5000,
}


@pytest.mark.parametrize("misleading", MISLEADING)
def test_attempts_of_nonsense_cost_a_learned_time_and_no_memory(misleading: str) -> None:
    async def mislead(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        plan = hostile.plan(ready)
        await hostile.tell(stream, hostile.planned(plan))
        await say(hostile, stream, *MISLEADING[misleading](hostile, plan))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(mislead)

    outcome = led(attack, num_slots=900, after_rounds=6)
    assert outcome.took_s < 240
    assert outcome.most_tasks < 150


def test_two_plans_of_one_round_split_nobody_for_good() -> None:
    """It shows ada another plan than the others."""

    async def two_faced(hostile: Hostile, stream: Stream, ready: Ready) -> None:
        plan = hostile.plan(ready)
        if stream.peer_id == identity_of("ada").peer_id:
            plan = msgspec.structs.replace(plan, joiners=(identity_of("nobody").peer_id,))
        await say(hostile, stream, hostile.planned(plan))

    async def attack(hostile: Hostile) -> None:
        await hostile.coordinate(two_faced)

    outcome = led(attack, num_slots=900, after_rounds=6)
    assert outcome.took_s < 240
