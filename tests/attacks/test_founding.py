"""The first round, which anybody may found: crowds who say that they want the job, and do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from tests.attacks.hostile import CHAIN, HONEST, ROUND, Hostile, stranger
from tests.averaging.swarm import JOB_ID, Swarm, identity_of
from zoonet.averaging import Chain, RoundsConfig
from zoonet.averaging.chain import coordinators
from zoonet.averaging.chain_sync import ChainPage, ChainRequest
from zoonet.averaging.leases import lease
from zoonet.averaging.messages import Ready, Round
from zoonet.crypto import PeerId
from zoonet.testing import run
from zoonet.transport import Stream, serve_calls

CROWD = tuple(f"sybil{number}" for number in range(40))
LATE_S = (0.0, 7.0, 100.0, 1000.0)  # that the last of the three honest founders comes

Attack = Callable[[Hostile], Awaitable[None]]


def founding(attack: Attack, *names: str, late_s: float = 0.0, within_s: float = 3600.0) -> float:
    """How long three honest peers need for their first round while strangers claim to found it.

    Seconds of virtual time since the last of the three came; the others came `late_s` earlier.
    """

    async def main() -> float:
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=3))
        for name in names:
            one = stranger(swarm, name)
            swarm.strangers.add(one.peer_id)
            await attack(one)
        for name in HONEST[:2]:
            await swarm.add(name)
        swarm.start(*HONEST[:2])
        await asyncio.sleep(late_s)
        await swarm.add(HONEST[2])
        swarm.start(HONEST[2])
        ada = swarm.peers["ada"]
        await swarm.until(lambda: len(ada.chain) >= 1, within_s=within_s)
        members = {swarm.peers[name].peer_id for name in HONEST}
        assert members <= set(ada.chain.certificates[0].result.members)
        took_s = asyncio.get_running_loop().time() - late_s
        for name in HONEST:
            await swarm.kill(name)
        return took_s

    return run(main())


async def sit(stream: Stream) -> None:
    await asyncio.Event().wait()


async def show_an_empty_chain(hostile: Hostile) -> None:
    """Answer the question whether one is there as an honest founder does."""
    empty = Chain(JOB_ID, 2000)

    async def answer(_: PeerId, request: ChainRequest) -> ChainPage:
        return ChainPage(
            job_id=JOB_ID,
            length=0,
            head=empty.head,
            num_done=0,
            parent=empty.head,
            certificates=(),
        )

    await serve_calls(hostile.transport, CHAIN, ChainRequest, answer)


async def be_nowhere(hostile: Hostile) -> None:
    await hostile.transport.close()


async def say_nothing(hostile: Hostile) -> None:
    for protocol in (CHAIN, ROUND):
        await hostile.transport.serve(protocol, sit)


async def answer_and_say_nothing(hostile: Hostile) -> None:
    await show_an_empty_chain(hostile)
    await hostile.transport.serve(ROUND, sit)


async def answer_with_nonsense(hostile: Hostile) -> None:
    async def nonsense(stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"\xc1")

    await show_an_empty_chain(hostile)
    await hostile.transport.serve(ROUND, nonsense)


async def be_alive_and_plan_nothing(hostile: Hostile) -> None:
    await show_an_empty_chain(hostile)
    await hostile.transport.serve(ROUND, hostile.beat)


def test_three_peers_alone_found_their_job_in_seconds() -> None:
    assert founding(be_nowhere) < 5


@pytest.mark.parametrize("late_s", LATE_S)
def test_founders_who_are_not_there_cost_nothing(late_s: float) -> None:
    assert founding(be_nowhere, *CROWD, late_s=late_s) < 10


@pytest.mark.parametrize("late_s", LATE_S)
def test_founders_who_never_answer_anything_cost_seconds(late_s: float) -> None:
    """Forty are asked in three lots, each of which has six seconds."""
    assert founding(say_nothing, *CROWD, late_s=late_s) < 30


@pytest.mark.parametrize("late_s", LATE_S)
def test_founders_who_answer_and_then_say_nothing_cost_minutes(late_s: float) -> None:
    """At most a visit of three seconds to each of them."""
    assert founding(answer_and_say_nothing, *CROWD, late_s=late_s) < 180


@pytest.mark.parametrize("late_s", LATE_S)
def test_founders_who_answer_and_break_the_rules_cost_seconds(late_s: float) -> None:
    assert founding(answer_with_nonsense, *CROWD, late_s=late_s) < 60


def test_founders_that_are_invented_all_the_time_cost_seconds() -> None:
    async def main() -> float:
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        ada = swarm.peers["ada"]

        async def invent() -> None:
            for number in range(2000):
                swarm.strangers.add(identity_of(f"new{number}").peer_id)
                await asyncio.sleep(0.1)

        inventing = asyncio.create_task(invent())
        await swarm.until(lambda: len(ada.chain) >= 1)
        took_s = asyncio.get_running_loop().time()
        inventing.cancel()
        for name in HONEST:
            await swarm.kill(name)
        return took_s

    assert run(main()) < 10


@pytest.mark.parametrize("late_s", LATE_S)
@pytest.mark.parametrize(("num_liars", "most_s"), [(1, 60), (4, 300), (10, 500), (40, 1200)])
def test_founders_who_are_alive_and_plan_nothing_cost_time_by_their_share(
    num_liars: int, most_s: float, late_s: float
) -> None:
    """Nobody can tell them from honest ones who wait for more, so there is a lot for each term."""
    assert founding(be_alive_and_plan_nothing, *CROWD[:num_liars], late_s=late_s) < most_s


def test_liars_who_come_under_new_names_all_the_time_do_not_begin_the_wait_anew() -> None:
    """One of them is whom all would gather at; each new name used to lead everybody back to it."""
    head = Chain(JOB_ID, 2000).head
    ids = {identity_of(name).peer_id: name for name in (*HONEST, *CROWD)}
    first = next(ids[one] for one in coordinators(head, ids) if ids[one] not in HONEST)
    assert coordinators(head, ids)[0] == identity_of(first).peer_id

    async def main() -> float:
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=3))

        async def appear(name: str) -> None:
            one = stranger(swarm, name)
            swarm.strangers.add(one.peer_id)
            await be_alive_and_plan_nothing(one)

        async def invent() -> None:
            for name in CROWD:
                if name != first:
                    await asyncio.sleep(4.0)
                    await appear(name)

        await appear(first)
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        inventing = asyncio.create_task(invent())
        ada = swarm.peers["ada"]
        await swarm.until(lambda: len(ada.chain) >= 1, within_s=3600.0)
        inventing.cancel()
        for name in HONEST:
            await swarm.kill(name)
        return asyncio.get_running_loop().time()

    assert run(main()) < 300


async def plan_for_itself_alone(hostile: Hostile) -> None:
    """Show everybody who comes a plan of a round without it."""
    await show_an_empty_chain(hostile)

    async def serve(stream: Stream) -> None:
        ready = msgspec.msgpack.decode(await stream.receive(), type=Ready)
        alone = lease(((0, 2000),), {hostile.peer_id: ready}, 10)
        plan = Round(job_id=JOB_ID, index=0, view=0, parent=ready.head, leases=alone)
        await hostile.tell(stream, hostile.planned(plan))
        await hostile.beat(stream)

    await hostile.transport.serve(ROUND, serve)


def test_not_prevented_yet_a_founder_that_plans_for_itself_alone_costs_most_of_an_hour() -> None:
    """Who comes waits at the door, as it would beside an honest round that takes so long."""
    took_s = founding(plan_for_itself_alone, CROWD[0], late_s=100.0, within_s=10_000)
    assert 600 < took_s < 4000
