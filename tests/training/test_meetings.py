"""Training pauses where the members of a site meet, and goes on from what they come to."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import uvloop

from tests.training.test_training_ahead import buffers_of, replica_and_trainers
from zoonet.testing import run
from zoonet.training.handle import TrainerProcess
from zoonet.training.local import Mix
from zoonet.training.replica import ReplicaEvents, TrainingReplica

ROUND = {"steps": 8, "num_done": 0, "num_planned": 16}
STOPS = (2, 4, 6)


async def keep(num_steps: int, theta_P: np.ndarray) -> bool:
    """A site in which nobody else has come."""
    return False


async def trained(job: Any, mix: Mix | None, *, stops: tuple[int, ...] = STOPS) -> np.ndarray:
    async with replica_and_trainers(job) as (replica, _):
        carried = await replica.train(((0, 8),), **ROUND, stops=stops, mix=mix)
        assert carried == ((0, 8),)
        assert replica.slots_per_s == pytest.approx(1.0)
        return await replica.pseudo_gradient()


def test_without_neighbours_pauses_change_nothing_to_the_bit(job: Any) -> None:
    async def main() -> tuple[np.ndarray, np.ndarray]:
        return await trained(job, None), await trained(job, keep)

    at_once_P, in_parts_P = run(main())
    assert at_once_P.any()
    assert at_once_P.tobytes() == in_parts_P.tobytes()


def test_it_goes_on_from_the_mean_and_not_from_where_it_stood(job: Any) -> None:
    """Taken back to the outer parameters after its first six steps, two are all that is left."""
    seen: list[tuple[int, bytes]] = []

    async def main() -> tuple[np.ndarray, np.ndarray]:
        async def back(num_steps: int, theta_P: np.ndarray) -> bool:
            seen.append((num_steps, theta_P.tobytes()))
            theta_P[:] = job.initial_P
            return True

        return await trained(job, back), await trained(job, keep)

    back_P, whole_P = run(main())
    assert [num_steps for num_steps, _ in seen] == [2, 4, 6]
    assert len({raw for _, raw in seen}) == 3
    assert 0 < np.linalg.norm(back_P) < 0.6 * np.linalg.norm(whole_P)


def test_who_is_told_to_stop_waits_for_nobody(job: Any) -> None:
    async def never(num_steps: int, theta_P: np.ndarray) -> bool:
        await asyncio.sleep(3600)
        return True

    async def main() -> float:
        async with replica_and_trainers(job) as (replica, _):
            training = asyncio.ensure_future(
                replica.train(((0, 8),), **ROUND, stops=STOPS, mix=never)
            )
            await asyncio.sleep(10)  # two steps, and then it waits
            began = asyncio.get_running_loop().time()
            replica.stop()
            assert await training == ((0, 2),)
            return asyncio.get_running_loop().time() - began

    assert run(main()) < 1.5


def test_time_spent_waiting_is_no_training_time(job: Any) -> None:
    async def late(num_steps: int, theta_P: np.ndarray) -> bool:
        await asyncio.sleep(5)
        return True

    async def main() -> tuple[float, list[float]]:
        speeds: list[float] = []
        async with replica_and_trainers(job) as (replica, _):
            began = asyncio.get_running_loop().time()
            await replica.train(((0, 8),), **ROUND, stops=STOPS, mix=late)
            speeds.append(replica.slots_per_s)
            return asyncio.get_running_loop().time() - began, speeds

    lasted_s, speeds = run(main())
    assert lasted_s == pytest.approx(8 + 3 * 5, abs=1)
    assert speeds == [pytest.approx(1.0)]


def test_a_trainer_process_goes_on_from_the_mean_too(job: Any) -> None:
    async def main() -> np.ndarray:
        async def back(num_steps: int, theta_P: np.ndarray) -> bool:
            theta_P[:] = job.initial_P
            return True

        events = ReplicaEvents(lambda _: None, lambda *_: None, lambda _: None)
        with buffers_of(job) as buffers:
            async with TrainingReplica.open(
                job.training,
                64,
                job.initial_P,
                buffers,
                lambda: TrainerProcess.open(job.start, buffers),
                events,
            ) as replica:
                await replica.train(((0, 8),), **ROUND, stops=STOPS, mix=back)
                delta_P = await replica.pseudo_gradient()
                state = await replica.stage(delta_P)
                assert await replica.commit(state, is_merged=True)
                await replica.train(((8, 9),), steps=1, num_done=8, num_planned=2)
                return delta_P

    async def inline() -> np.ndarray:
        async def back(num_steps: int, theta_P: np.ndarray) -> bool:
            theta_P[:] = job.initial_P
            return True

        return await trained(job, back)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        by_process_P = runner.run(main())
    assert by_process_P.tobytes() == run(inline()).tobytes()
