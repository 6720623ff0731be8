from __future__ import annotations

import asyncio
from typing import Any

from zoonet.testing import run
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import Trainer
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import StepDone, Train

TRAIN = Train(
    round=2,
    slots=((3, 6), (10, 12)),
    steps=5,
    num_carried=0,
    tokens_done=0,
    tokens_planned=640,
    is_fresh=True,
    has_inner_state=False,
)


def test_time_is_the_loops_own(job: Any) -> None:
    steps: list[StepDone] = []

    async def main() -> None:
        with SharedBuffers.create(job.num_parameters) as buffers:
            buffers.global_P[:] = job.initial_P
            async with InlineTrainer.open(job.start, buffers, step_s=60.0) as inline:
                trainer: Trainer = inline
                trained = await trainer.train(TRAIN, steps.append)
                assert trained.seconds == 300.0
                assert trained.slots == TRAIN.slots
                assert trained.tokens == 5 * 64

    run(main())
    assert [step.steps for step in steps] == [1, 2, 3, 4, 5]
    assert {round(step.tokens_per_s, 3) for step in steps} == {round(64 / 60, 3)}


def test_a_stop_takes_effect_between_two_steps(job: Any) -> None:
    async def main() -> None:
        with SharedBuffers.create(job.num_parameters) as buffers:
            buffers.global_P[:] = job.initial_P
            async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                training = asyncio.create_task(trainer.train(TRAIN))
                await asyncio.sleep(3.5)
                await trainer.stop()
                trained = await training
                assert trained.slots == ((3, 6),)
                assert buffers.local_P.any()

    run(main())


def test_a_cancelled_round_changes_nothing(job: Any) -> None:
    async def main() -> None:
        with SharedBuffers.create(job.num_parameters) as buffers:
            buffers.global_P[:] = job.initial_P
            async with InlineTrainer.open(job.start, buffers, step_s=1.0) as trainer:
                training = asyncio.create_task(trainer.train(TRAIN))
                await asyncio.sleep(3.5)
                training.cancel()
                await asyncio.wait([training])
                assert training.cancelled()
                assert not buffers.local_P.any()
                assert not buffers.inner_N.any()

    run(main())
