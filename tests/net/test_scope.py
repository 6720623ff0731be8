"""Background tasks with an owner."""

from __future__ import annotations

import asyncio

import pytest

from zoonet.errors import TransportError
from zoonet.net.scope import Scope
from zoonet.testing import run


async def fail_after(delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    raise TransportError("the task failed")


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_failing_task_ends_the_block_with_its_very_exception() -> None:
    async def story() -> None:
        async with Scope() as scope:
            scope.spawn(fail_after(1), name="fails")
            await asyncio.Event().wait()

    with pytest.raises(TransportError, match="the task failed"):
        run(story())


def test_the_blocks_own_exception_passes_unchanged_and_ends_the_tasks() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def story() -> None:
        async with Scope() as scope:
            tasks.append(scope.spawn(forever(), name="forever"))
            await asyncio.sleep(1)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(story())
    assert tasks[0].cancelled()


def test_a_cancelled_owner_stays_cancelled() -> None:
    async def story() -> None:
        async def owner() -> None:
            async with Scope() as scope:
                scope.spawn(forever(), name="forever")
                await asyncio.Event().wait()

        task = asyncio.create_task(owner())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(story())


def test_an_owner_cancelled_by_others_and_by_a_failing_task_stays_cancelled() -> None:
    async def story() -> None:
        async def owner() -> None:
            async with Scope() as scope:
                scope.spawn(fail_after(1), name="fails")
                await asyncio.Event().wait()

        task = asyncio.create_task(owner())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(story())


def test_a_task_that_ends_by_itself_disturbs_nobody() -> None:
    async def story() -> str:
        async with Scope() as scope:
            scope.spawn(asyncio.sleep(0), name="short")
            await asyncio.sleep(1)
            return "done"

    assert run(story()) == "done"


def test_a_task_that_fails_while_the_block_closes_does_not_keep_it_from_closing() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise TransportError("while closing")

    async def story() -> str:
        async with Scope() as scope:
            scope.spawn(fail_when_cancelled(), name="fails late")
            await asyncio.sleep(0)
        return "closed"

    assert run(story()) == "closed"


def test_a_task_may_fail_once_its_owner_has_let_go() -> None:
    async def story() -> str:
        async with Scope() as scope:
            scope.spawn(fail_after(1), name="fails")
            scope.let_go()
            await asyncio.sleep(2)
        return "closed"

    assert run(story()) == "closed"
