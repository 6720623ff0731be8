"""The outer momentum in equal parts: where a trainer stands, which nothing else knows of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from zoonet.testing import run
from zoonet.training.buffers import SharedBuffers
from zoonet.training.drift import known_scale, share_after
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Train
from zoonet.training.outer import outer_step
from zoonet.training.replica import ReplicaEvents, TrainingReplica
from zoonet.training.session import TrainingSession
from zoonet.training.state import chunk, chunk_digests, num_chunks, root_digest
from zoonet.training.workload import Workload

CONSTANT_RATE = {"min_lr_fraction": 1.0, "inner_lr": 3e-3}


@asynccontextmanager
async def replica_of(job: Any) -> AsyncIterator[tuple[TrainingReplica, SharedBuffers]]:
    """A replica with a trainer that takes a step a second."""
    events = ReplicaEvents(lambda _: None, lambda *_: None, lambda _: None)
    with SharedBuffers.create(job.num_parameters) as buffers:
        async with TrainingReplica.open(
            job.training,
            64,
            job.initial_P,
            buffers,
            lambda: InlineTrainer.open(job.start, buffers, step_s=1.0),
            events,
        ) as replica:
            yield replica, buffers


async def certify(replica: TrainingReplica, *, is_merged: bool = True) -> None:
    state = await replica.stage(await replica.pseudo_gradient())
    assert await replica.commit(state, is_merged=is_merged)


async def joined(replica: TrainingReplica, theta_P: Any, momentum_P: Any) -> None:
    """Have a replica adopt a state with this momentum, as one that comes late does."""
    digests = list(chunk_digests(theta_P, momentum_P))
    chunks = [
        chunk(theta_P, momentum_P, index).tobytes() for index in range(num_chunks(theta_P.size))
    ]
    await replica.adopt(root_digest(digests), digests, chunks)


def test_what_is_known_of_an_outer_step_is_what_it_does_without_a_mean(
    rng: np.random.Generator,
) -> None:
    theta_P, momentum_P, mean_P = rng.standard_normal((3, 50), np.float32)
    moved_P, _ = outer_step(theta_P, momentum_P, np.zeros_like(theta_P), lr=0.7, momentum=0.9)
    np.testing.assert_allclose(moved_P, theta_P - known_scale(0.7, 0.9) * momentum_P, atol=1e-6)
    with_mean_P, _ = outer_step(theta_P, momentum_P, mean_P, lr=0.7, momentum=0.9)
    np.testing.assert_allclose(with_mean_P, moved_P - 0.7 * 1.9 * mean_P, atol=1e-5)


def test_the_parts_of_a_round_are_equal_and_go_neither_beyond_it_nor_back() -> None:
    share, shares = 0.0, []
    for num_left in (4, 3, 2, 1):
        share = share_after(share, 1.0, num_left)
        shares.append(share)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert share_after(1.0, 1.0, 5) == 1.0
    assert share_after(1.0, 0.2, 5) == 1.0
    assert share_after(0.5, 1.0, 0) == 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trainer_stands_at_each_round_where_the_rule_says(
    make_job: Callable[..., Any], optimizer: str
) -> None:
    """Rounds of four steps, one of them early, beside the rule played by hand on plain steps."""
    plain = make_job(optimizer=optimizer, **CONSTANT_RATE)
    spread = make_job(optimizer=optimizer, outer_momentum_spread=True, **CONSTANT_RATE)
    spec = spread.training
    scale = np.float32(known_scale(spec.outer_lr, spec.outer_momentum))

    def by_hand() -> list[tuple[np.ndarray, np.ndarray]]:
        theta_P, momentum_P, slots = plain.initial_P.copy(), np.zeros_like(plain.initial_P), 0
        told_P, inner_N = np.empty_like(theta_P), np.zeros(2 * theta_P.size + 1, np.float32)
        found = []
        with TrainingSession(plain.start) as session:
            session.begin(theta_P, None)
            for round_ in range(3):
                num_steps = 3 if round_ else 4
                for _ in range(num_steps):
                    session.step(slots, 0.5)
                    session.shift(-scale * momentum_P / np.float32(num_steps))
                    slots += 1
                session.finish_round(told_P, inner_N)
                work_P = told_P + scale * momentum_P
                session.step(slots, 0.5)  # before the mean is known
                slots += 1
                theta_P, momentum_P = outer_step(
                    theta_P,
                    momentum_P,
                    theta_P - work_P,
                    lr=spec.outer_lr,
                    momentum=spec.outer_momentum,
                )
                session.shift(theta_P - told_P)
                found.append((work_P, theta_P))
        return found

    async def by_trainer() -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        async with replica_of(spread) as (replica, buffers):
            for round_ in range(3):
                lease = ((4 * round_, 4 * round_ + 9),)
                await replica.train(lease, steps=4, num_done=0, num_planned=4)
                work_P = buffers.local_P.copy()
                await asyncio.sleep(1.5)
                await certify(replica)
                found.append((work_P, replica.theta_P.copy()))
        return found

    for (work_P, theta_P), (told_P, outer_P) in zip(by_hand(), run(by_trainer()), strict=True):
        np.testing.assert_allclose(told_P, work_P, atol=2e-5)
        np.testing.assert_allclose(outer_P, theta_P, atol=4e-5)


def test_drift_is_no_work_and_a_late_joiner_drifts_from_its_first_round(
    make_job: Callable[..., Any],
) -> None:
    """With inner steps that hardly move, gradients differ but nothing is contributed."""
    job = make_job(outer_momentum_spread=True, inner_lr=1e-9, weight_decay=0.0)
    momentum_P = np.full_like(job.initial_P, 0.02)

    async def main() -> None:
        async with replica_of(job) as (replica, buffers):
            before = (await replica.evaluate(0)).loss
            await joined(replica, job.initial_P, momentum_P)
            carried = await replica.train(((0, 9),), steps=5, num_done=0, num_planned=5)
            assert carried == ((0, 5),)
            assert np.abs(await replica.pseudo_gradient()).max() < 1e-6
            assert (await replica.evaluate(0)).loss == before, "of the outer parameters"
            await certify(replica)
            moved_P = job.initial_P - np.float32(known_scale(0.7, 0.9)) * momentum_P
            np.testing.assert_allclose(replica.theta_P, moved_P, atol=1e-5)
            np.testing.assert_allclose(buffers.momentum_P, 0.9 * momentum_P, atol=1e-5)

    run(main())


def test_where_gradients_are_taken_moves_on_in_equal_parts(make_job: Callable[..., Any]) -> None:
    job = make_job(outer_momentum_spread=True, inner_lr=1e-9, weight_decay=0.0)
    momentum_P = np.full_like(job.initial_P, 0.02)
    stands_P, work_P = np.empty_like(momentum_P), np.empty_like(momentum_P)
    inner_N = np.zeros(2 * momentum_P.size + 1, np.float32)
    scale = known_scale(0.7, 0.9)
    with TrainingSession(job.start) as session:
        session.begin(job.initial_P, None, momentum_P)
        for step in range(4):
            session.step(step, 0.5, (step + 1) / 4)
            session._flat.store(stands_P)
            drifted = (job.initial_P - stands_P) / (scale * momentum_P)
            np.testing.assert_allclose(drifted, (step + 1) / 4, atol=1e-3)
            session.finish_round(work_P, inner_N)
            np.testing.assert_allclose(work_P, job.initial_P, atol=1e-6)
        session.begin(job.initial_P, None, momentum_P)  # as after a NaN
        assert session.drift == 0.0
        session._flat.store(stands_P)
        assert np.array_equal(stands_P, job.initial_P)


@pytest.mark.parametrize("is_merged", [True, False])
def test_work_that_a_round_does_not_hold_is_carried_without_the_drift(
    make_job: Callable[..., Any], is_merged: bool
) -> None:
    """As without spreading, theta_local - theta_outer is the same before and after a move."""
    job = make_job(outer_momentum_spread=True, **CONSTANT_RATE)
    momentum_P = np.full_like(job.initial_P, 0.02)

    async def main() -> None:
        async with replica_of(job) as (replica, _):
            await joined(replica, job.initial_P, momentum_P)
            await replica.train(((0, 9),), steps=4, num_done=0, num_planned=4)
            work_P = await replica.pseudo_gradient()
            await certify(replica, is_merged=is_merged)
            replica.stop()
            await replica.train(((0, 9),), steps=0, num_done=0, num_planned=4)
            expected_P = np.zeros_like(work_P) if is_merged else work_P
            np.testing.assert_allclose(await replica.pseudo_gradient(), expected_P, atol=1e-5)

    run(main())


def test_the_outer_state_is_the_same_to_the_bit_with_and_without(
    make_job: Callable[..., Any], rng: np.random.Generator
) -> None:
    means = rng.standard_normal((3, make_job().num_parameters), np.float32)

    async def main(*, is_spread: bool) -> bytes:
        async with replica_of(make_job(outer_momentum_spread=is_spread)) as (replica, _):
            for mean_P in means:
                state = await replica.stage(mean_P)
                assert await replica.commit(state, is_merged=False)
            return replica.state_digest

    assert run(main(is_spread=True)) == run(main(is_spread=False))


def test_a_site_meets_and_goes_on_without_the_drift_in_its_mean(
    make_job: Callable[..., Any],
) -> None:
    job = make_job(outer_momentum_spread=True, inner_lr=1e-9, weight_decay=0.0)

    def command(slots: tuple[int, int], steps: int, drift: float, **fields: Any) -> Train:
        return Train(
            round=1,
            slots=(slots,),
            steps=steps,
            tokens_done=0,
            tokens_planned=640,
            has_inner_state=False,
            drift=drift,
            **fields,
        )

    async def main() -> None:
        with SharedBuffers.create(job.num_parameters) as buffers:
            buffers.global_P[:] = job.initial_P
            buffers.momentum_P[:] = 0.02
            async with InlineTrainer.open(job.start, buffers) as trainer:
                await trainer.train(command((0, 2), 2, 0.2, num_carried=0, is_fresh=True))
                np.testing.assert_allclose(buffers.local_P, job.initial_P, atol=1e-6)
                buffers.local_P[:] = 0.5 * job.initial_P
                later = {"num_carried": 2, "is_fresh": False, "takes_local": True}
                await trainer.train(command((2, 10), 10, 1.0, **later))
                np.testing.assert_allclose(buffers.local_P, 0.5 * job.initial_P, atol=1e-6)

    run(main())


def test_steps_that_no_command_asks_for_do_not_drift(make_job: Callable[..., Any]) -> None:
    job = make_job(outer_momentum_spread=True)

    async def main() -> None:
        async with replica_of(job) as (replica, buffers):
            await joined(replica, job.initial_P, np.full_like(job.initial_P, 0.02))
            with TrainingSession(job.start) as session:
                work = Workload(session, buffers, lambda: 0.0)
                work.take_on(
                    Train(
                        round=1,
                        slots=((0, 9),),
                        steps=4,
                        num_carried=0,
                        tokens_done=0,
                        tokens_planned=256,
                        is_fresh=True,
                        has_inner_state=False,
                    )
                )
                work.step()
                assert session.drift == 0.25
                work.report()
                work.step_ahead()  # told early: the round's mean is not known
                assert session.drift == 0.25
                work.merge(is_merged=True)
                work.step_ahead()  # how many steps there will be is not known
                assert session.drift == 0.0

    run(main())
