"""Somebody's loop in its thread, and the network's wishes in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from torch import nn

from zoonet.errors import ConfigError, NonFiniteLoss, TrainingError
from zoonet.ranges import Ranges
from zoonet.training.buffers import SharedBuffers
from zoonet.training.messages import Train
from zoonet.training.own_loop import MAX_UNSTEPPED, OwnLoop
from zoonet.training.vector import ModelVector


def command(slots: Ranges, steps: int, *, is_fresh: bool = False, num_carried: int = 0) -> Train:
    return Train(
        round=0,
        slots=slots,
        steps=steps,
        num_carried=num_carried,
        tokens_done=0,
        tokens_planned=0,
        is_fresh=is_fresh,
        has_inner_state=False,
    )


class Counting:
    """A model of one parameter, to which every step adds 1."""

    def __init__(self, *, accumulate: int = 1) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.loop = OwnLoop(ModelVector(self.model), 4, forget_moments=self.forget)
        self.seen: list[int] = []
        self.num_forgotten = 0
        self.accumulate = accumulate
        self.ended: Future[None] = Future()

    def forget(self) -> None:
        self.num_forgotten += 1

    @property
    def value(self) -> float:
        return self.model.weight.item()

    def step(self, by: float = 1.0) -> None:
        with torch.no_grad():
            self.model.weight += by
        self.loop.stepped()

    def run(self) -> None:
        try:
            while (slot := self.loop.next_slot()) is not None:
                self.seen.append(slot)
                if len(self.seen) % self.accumulate == 0:
                    self.step()
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)


@asynccontextmanager
async def running(counting: Counting, *, body: Callable[[], None] | None = None) -> AsyncIterator:
    """The loop in a thread of its own, and its buffers."""
    with SharedBuffers.create(1) as buffers:
        buffers.global_P[:] = 10.0
        async with counting.loop.open(buffers):
            thread = threading.Thread(target=body or counting.run)
            thread.start()
            try:
                async with asyncio.timeout(30):
                    yield buffers
            finally:
                counting.loop.fail(ConfigError("over"))
                await asyncio.to_thread(thread.join)


@pytest.mark.asyncio
async def test_a_loop_trains_what_it_is_leased_and_moves_when_a_round_is_certified() -> None:
    counting = Counting()
    async with running(counting) as buffers:
        trained = await counting.loop.train(command(((0, 3),), 3, is_fresh=True))
        assert trained.slots == ((0, 3),) and trained.tokens == 12
        assert buffers.local_P[0] == 13.0
        buffers.global_P[:] = 12.5
        await counting.loop.merge(is_merged=True)
        assert counting.value == 12.5
        trained = await counting.loop.train(command(((3, 4),), 5))
        assert trained.slots == ((3, 4),) and buffers.local_P[0] == 13.5
        counting.loop.conclude(np.float32([99.0]))
        await asyncio.wrap_future(counting.ended)
        assert counting.value == 99.0 and counting.seen == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_slots_beyond_the_steps_are_trained_ahead_and_told_of_next_time() -> None:
    counting = Counting()
    async with running(counting) as buffers:
        trained = await counting.loop.train(command(((0, 9),), 2, is_fresh=True))
        first = trained.slots
        assert first == ((0, 2),)
        trained = await counting.loop.train(command(((2, 9),), 9, num_carried=2))
        assert trained.slots == ((2, 9),)
        assert buffers.local_P[0] == 19.0 and counting.seen == list(range(9))


@pytest.mark.asyncio
async def test_gradients_may_be_accumulated_over_more_slots_than_a_lease_has_left() -> None:
    counting = Counting(accumulate=4)
    async with running(counting) as buffers:
        trained = await counting.loop.train(command(((0, 6),), 6, is_fresh=True))
        assert trained.slots == ((0, 6),)
        assert buffers.local_P[0] == 11.0
        trained = await counting.loop.train(command(((6, 8),), 2))
        assert trained.slots == ((6, 8),) and buffers.local_P[0] == 12.0


@pytest.mark.asyncio
async def test_a_loop_that_waits_can_be_told_to_stop() -> None:
    counting = Counting()
    async with running(counting):
        await counting.loop.train(command(((0, 1),), 1, is_fresh=True))
        await counting.loop.stop()
        trained = await counting.loop.train(command((), 5, num_carried=1))
        assert trained.slots == ()


@pytest.mark.asyncio
async def test_what_ends_the_network_is_raised_in_the_loop_and_frees_those_who_wait() -> None:
    counting = Counting()

    def forgetful() -> None:
        """Takes a slot and never comes back for another."""
        counting.seen.append(counting.loop.next_slot() or 0)
        counting.ended.set_result(None)

    async with running(counting, body=forgetful):
        waiting = asyncio.create_task(counting.loop.train(command(((0, 2),), 2, is_fresh=True)))
        await asyncio.wrap_future(counting.ended)
        counting.loop.fail(ConfigError("the door is shut"))
        with pytest.raises(TrainingError, match="the door is shut"):
            await waiting
        with pytest.raises(TrainingError, match="the door is shut"):
            await counting.loop.merge(is_merged=False)
        with pytest.raises(ConfigError, match="the door is shut"):
            counting.loop.next_slot()


@pytest.mark.asyncio
async def test_a_step_to_infinity_is_told_and_the_next_lease_begins_afresh() -> None:
    counting = Counting()

    def explode() -> None:
        counting.seen.append(counting.loop.next_slot() or 0)
        counting.step(by=float("inf"))
        counting.run()

    async with running(counting, body=explode) as buffers:
        with pytest.raises(NonFiniteLoss):
            await counting.loop.train(command(((0, 1),), 1, is_fresh=True))
        assert counting.num_forgotten == 1
        trained = await counting.loop.train(command(((0, 2),), 2, is_fresh=True))
        assert trained.slots == ((0, 2),) and buffers.local_P[0] == 12.0


@pytest.mark.asyncio
async def test_a_slot_that_was_left_without_a_step_is_handed_out_again() -> None:
    counting = Counting()

    def twice() -> None:
        counting.seen.append(counting.loop.next_slot() or 0)
        counting.loop.put_back()
        counting.run()

    async with running(counting, body=twice):
        trained = await counting.loop.train(command(((0, 2),), 2, is_fresh=True))
        assert trained.slots == ((0, 2),) and counting.seen == [0, 0, 1]


@pytest.mark.asyncio
async def test_a_loop_with_another_optimizer_is_told_so() -> None:
    counting = Counting(accumulate=10**9)
    async with running(counting):
        training = asyncio.create_task(
            counting.loop.train(command(((0, MAX_UNSTEPPED + 5),), 10**6, is_fresh=True))
        )
        with pytest.raises(ConfigError, match="optimizer that was prepared"):
            await asyncio.wrap_future(counting.ended)
        counting.loop.fail(ConfigError("over"))
        with pytest.raises(TrainingError):
            await training


@pytest.mark.asyncio
async def test_a_loop_that_waits_for_the_network_does_what_it_asks_for_meanwhile() -> None:
    counting = Counting()
    answer: Future[int] = Future()

    def look() -> None:
        counting.seen.append(counting.loop.next_slot() or 0)
        counting.step()
        counting.seen.append(counting.loop.wait_for(answer))
        counting.run()

    async with running(counting, body=look) as buffers:
        await counting.loop.train(command(((0, 1),), 1, is_fresh=True))
        buffers.local_P[:] = 5.0
        await counting.loop.merge(is_merged=False)
        answer.set_result(7)
        await counting.loop.train(command(((1, 2),), 1))
        assert counting.seen == [0, 7, 1] and counting.value == 17.0
