"""A trainer goes on by itself after its answer, and moves along when a round is certified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop

from zoonet.errors import WorkLost
from zoonet.testing import run
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Train
from zoonet.training.replica import ReplicaEvents, TrainingReplica


def command(*slots: tuple[int, int], steps: int, carried: int = 0, is_fresh: bool = False) -> Train:
    return Train(
        round=1,
        slots=slots,
        steps=steps,
        num_carried=carried,
        tokens_done=0,
        tokens_planned=64 * steps,
        is_fresh=is_fresh,
        has_inner_state=False,
    )


def buffers_of(job: Any) -> SharedBuffers:
    buffers = SharedBuffers.create(job.num_parameters)
    buffers.global_P[:] = job.initial_P
    return buffers


@asynccontextmanager
async def replica_of(job: Any) -> AsyncIterator[TrainingReplica]:
    """A replica with a trainer that takes a step a second."""
    async with replica_and_trainers(job) as (replica, _):
        yield replica


@asynccontextmanager
async def replica_and_trainers(
    job: Any,
) -> AsyncIterator[tuple[TrainingReplica, list[tuple[InlineTrainer, SharedBuffers]]]]:
    trainers = []
    events = ReplicaEvents(lambda _: None, lambda *_: None, lambda _: None)
    with buffers_of(job) as buffers:

        @asynccontextmanager
        async def open_trainer() -> AsyncIterator[InlineTrainer]:
            async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                trainers.append((trainer, buffers))
                yield trainer

        async with TrainingReplica.open(
            job.training, 64, job.initial_P, buffers, open_trainer, events
        ) as replica:
            yield replica, trainers


def test_what_is_trained_ahead_is_what_would_have_been_trained_at_once(job: Any) -> None:
    async def main() -> tuple[np.ndarray, np.ndarray]:
        found = []
        for split in (False, True):
            with buffers_of(job) as buffers:
                async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                    first = command((0, 8), steps=4 if split else 8, is_fresh=True)
                    trained = await trainer.train(first)
                    if split:
                        assert trained.slots == ((0, 4),)
                        await asyncio.sleep(2.5)
                        rest = command((4, 8), steps=8, carried=4)
                        trained = await trainer.train(rest)
                        assert trained.slots == ((4, 8),)
                found.append(buffers.local_P.copy())
        return found[0], found[1]

    at_once_P, in_parts_P = run(main())
    moved = np.abs(at_once_P - in_parts_P).max()
    assert moved < 1e-3  # the learning rate is another one in a round of four steps


def test_a_round_moves_the_trainer_along_and_keeps_what_it_did_since(job: Any) -> None:
    """theta_local - theta_outer is the same before and after, and is the next contribution."""

    async def main() -> None:
        async with replica_of(job) as replica:
            carried = await replica.train(((0, 9),), steps=3, num_done=0, num_planned=3)
            assert carried == ((0, 3),)
            delta_P = await replica.pseudo_gradient()
            await asyncio.sleep(2.5)  # two more slots, before the round is certified
            state = await replica.stage(delta_P)
            assert await replica.commit(state, is_merged=True)
            assert replica.carried == ()
            replica.stop()
            carried = await replica.train(((3, 9),), steps=1, num_done=3, num_planned=3)
            assert carried == ((3, 5),)
            ahead_P = await replica.pseudo_gradient()
            assert 0 < np.linalg.norm(ahead_P) < np.linalg.norm(delta_P)

    run(main())


def test_two_rounds_of_one_peer_add_up_to_its_own_training(make_job: Any) -> None:
    """With an outer step that takes everything over, nothing is lost or counted twice."""
    plain = make_job(outer_lr=1.0, outer_momentum=0.0)

    async def main() -> tuple[np.ndarray, np.ndarray]:
        async with replica_of(plain) as replica:
            await replica.train(((0, 9),), steps=3, num_done=0, num_planned=9)
            await asyncio.sleep(2.5)
            state = await replica.stage(await replica.pseudo_gradient())
            await replica.commit(state, is_merged=True)
            await replica.train(((3, 9),), steps=6, num_done=0, num_planned=9)
            state = await replica.stage(await replica.pseudo_gradient())
            await replica.commit(state, is_merged=True)
            outer_P = replica.theta_P.copy()
        with buffers_of(plain) as buffers:
            async with InlineTrainer.open(plain.start, buffers) as trainer:
                await trainer.train(command((0, 9), steps=9, is_fresh=True))
                return outer_P, buffers.local_P.copy()

    outer_P, alone_P = run(main())
    assert np.abs(outer_P - alone_P).max() < 5e-3
    assert np.linalg.norm(outer_P - alone_P) < 0.1 * np.linalg.norm(alone_P - plain.initial_P)


def test_the_trainer_process_goes_on_between_commands_and_tells_of_it_later(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                trained = await trainer.train(command((0, 40), steps=2, is_fresh=True))
                assert trained.slots == ((0, 2),)
                first_P = buffers.local_P.copy()
                evaluated = await trainer.evaluate()  # in the middle of it
                assert evaluated.loss > 0
                trained = await trainer.train(command((2, 40), steps=30, carried=2))
                ((start, stop),) = trained.slots
                assert start == 2 and stop >= 30
                assert not np.array_equal(buffers.local_P, first_P)
                buffers.local_P[:] = 0.5
                await trainer.merge(is_merged=False)
                trained = await trainer.train(command((stop, 40), steps=0, carried=stop))
                assert buffers.local_P.mean() > first_P.mean() + 0.4

    uvloop.run(main())


def test_a_trainer_with_nothing_left_says_how_long_it_was_idle(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                await trainer.train(command((0, 4), steps=2, is_fresh=True))
                await asyncio.sleep(7.0)  # two slots of work, five seconds of nothing
                trained = await trainer.train(command((4, 5), steps=1, carried=2))
                assert trained.slots == ((2, 4),)
                assert (trained.seconds, trained.idle_s) == (2.0, 5.0)

    run(main())


def test_time_that_was_lost_does_not_count_as_training(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                lost = asyncio.create_task(trainer.train(command((0, 9), steps=9, is_fresh=True)))
                await asyncio.sleep(3.5)
                lost.cancel()
                await asyncio.wait([lost])
                trained = await trainer.train(command((0, 2), steps=2, is_fresh=True))
                assert trained.seconds == 2.0

    run(main())


def test_a_failure_between_commands_costs_the_local_work_and_is_told_with_the_next(
    job: Any,
) -> None:
    async def main() -> None:
        async with replica_and_trainers(job) as (replica, trainers):
            await replica.train(((0, 9),), steps=3, num_done=0, num_planned=3)
            await replica.pseudo_gradient()
            ((trainer, buffers),) = trainers
            await asyncio.sleep(0.5)
            buffers.local_P[:] = np.nan  # as a broken step would
            await trainer.merge(is_merged=False)
            await asyncio.sleep(2.5)
            with pytest.raises(WorkLost):
                await replica.train(((0, 9),), steps=9, num_done=3, num_planned=3)
            assert replica.carried == ()
            carried = await replica.train(((9, 12),), steps=3, num_done=3, num_planned=3)
            assert carried == ((9, 12),)

    run(main())


def test_a_round_that_is_not_certified_costs_no_work(job: Any) -> None:
    async def main(is_tried: bool) -> np.ndarray:
        async with replica_of(job) as replica:
            await replica.train(((0, 6),), steps=3, num_done=0, num_planned=6)
            if is_tried:
                delta_P = await replica.pseudo_gradient()
                await replica.stage(delta_P)  # nobody votes for it
                replica.stop()
            await replica.train(((0, 6),), steps=6, num_done=0, num_planned=6)
            assert replica.carried == ((0, 6),)
            return await replica.pseudo_gradient()

    tried_P, at_once_P = run(main(True)), run(main(False))
    assert np.linalg.norm(tried_P - at_once_P) < 0.1 * np.linalg.norm(at_once_P)
