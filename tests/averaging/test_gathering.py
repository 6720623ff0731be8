"""Gathering the members of a round: what a coordinator learns of how long that takes."""

from __future__ import annotations

import asyncio

import pytest

from tests.averaging.makers import empty_chain, grow, peer, ready
from tests.averaging.swarm import JOB_ID, NUM_PARAMETERS, identity_of
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.coordinator import Coordinator, RoundSeat
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.messages import MAX_RANGES, Round
from zoonet.clock import LoopClock
from zoonet.ranges import Ranges
from zoonet.testing import run
from zoonet.transport import local_pair

NAMES = ("ada", "bob", "cyd")
FIRST_S = 15.0


class Seat:
    """ada's seat in a round of three, and who comes to it."""

    def __init__(
        self, timeout: LearnedTimeout, free: Ranges | None = None, inner_steps: int = 25
    ) -> None:
        chain = grow(empty_chain(), *NAMES)
        seat = RoundSeat(
            job_id=JOB_ID,
            index=len(chain),
            view=0,
            parent=chain.head,
            roster=chain.roster,
            free=chain.free if free is None else free,
            num_parameters=NUM_PARAMETERS,
        )
        self.lead = Coordinator(
            identity_of("ada"),
            LoopClock(),
            RoundsConfig(inner_steps=inner_steps),
            seat,
            timeout,
            lambda: set(),
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, name: str) -> None:
        _, far = local_pair(peer(name))
        self.tasks.append(asyncio.create_task(self.lead.attend(far, ready())))
        await asyncio.sleep(0.01)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def learned() -> LearnedTimeout:
    return LearnedTimeout(first_s=FIRST_S, floor_s=0.0, ceiling_s=30.0)


def test_who_comes_again_and_again_to_a_peer_that_is_not_there_shortens_nothing() -> None:
    async def main() -> float:
        timeout = learned()
        for _ in range(20):
            seat = Seat(timeout)
            await seat.come("bob")
            await seat.come("cyd")
            await seat.leave()
        return timeout.timeout_s

    assert run(main()) == FIRST_S


def test_the_times_of_those_who_come_after_the_coordinator_are_learned() -> None:
    async def main() -> float:
        timeout = learned()
        for _ in range(2):
            seat = Seat(timeout)
            await seat.come("ada")
            await asyncio.sleep(5.0)
            await seat.come("bob")
            await seat.come("cyd")
            await seat.come("cyd")  # a second time tells nothing new
            await seat.leave()
        return timeout.timeout_s

    assert 5.0 < run(main()) < 5.2


def test_who_was_there_before_the_coordinator_has_kept_nobody_waiting() -> None:
    async def main() -> float:
        timeout = learned()
        for _ in range(2):
            seat = Seat(timeout)
            await seat.come("bob")
            await seat.come("cyd")
            await asyncio.sleep(5.0)
            await seat.come("ada")
            await seat.leave()
        return timeout.timeout_s

    assert run(main()) == 0.0


@pytest.mark.parametrize("inner_steps", [200, 250, 300, 400])
def test_guests_are_leased_no_more_pieces_than_members_leave(inner_steps: int) -> None:
    """What the coordinator plans is never too much for one plan, however torn the rest is."""

    async def main() -> Round:
        torn = tuple((at, at + 1) for at in range(10, 8010, 2))
        seat = Seat(learned(), torn, inner_steps)
        leading = asyncio.create_task(seat.lead.lead())
        for name in ("eve", *NAMES):
            await seat.come(name)
        await asyncio.sleep(1.0)
        assert seat.lead.plan is not None
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await seat.leave()
        return seat.lead.plan

    plan = run(main())
    assert plan.joiners == (peer("eve"),) and bool(plan.guests) == (inner_steps < 400)
    assert sum(len(one.slots) for one in (*plan.leases, *plan.guests)) < MAX_RANGES
