"""One peer's copy of the outer state: staged, committed, handed on, let go of."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from zoonet.config.job import TrainingConfig
from zoonet.errors import DigestMismatch, NonFiniteLoss, TrainingError, WorkLost
from zoonet.ranges import Ranges, count, union
from zoonet.testing import run
from zoonet.training.buffers import SharedBuffers
from zoonet.training.messages import Evaluated, Sample, Train, Trained
from zoonet.training.outer import outer_step
from zoonet.training.replica import Evaluation, ReplicaEvents, TrainingReplica

P = 1000
SPEC = TrainingConfig(tokens=64_000, outer_lr=0.5, outer_momentum=0.5)
INITIAL_P = np.linspace(-1, 1, P, dtype=np.float32)


class StepTrainer:
    """Adds the number of slots to every parameter; fails where it is told to."""

    device = "cpu"
    layout = (("weights", (P,)),)

    def __init__(self, buffers: SharedBuffers) -> None:
        self.buffers = buffers
        self.theta_P = buffers.global_P.copy()
        self.failure: Exception | None = None
        self.commands: list[Train] = []

    async def train(self, command: Train, on_step: object = None) -> Trained:
        await asyncio.sleep(1.0)
        self.commands.append(command)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if command.is_fresh:
            self.theta_P = self.buffers.global_P.copy()
        num = count(command.slots)
        self.theta_P += np.float32(num)
        self.buffers.local_P[:] = self.theta_P
        return Trained(round=0, slots=command.slots, loss=2.0, tokens=64 * num, seconds=1.0)

    async def merge(self, *, is_merged: bool) -> None:
        self.theta_P += self.buffers.local_P

    async def stop(self) -> None:
        return None

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        return Evaluated(loss=float(self.buffers.global_P.mean()), tokens=max_tokens)

    async def sample(self, request: Sample) -> str:
        return request.prompt


class Bench:
    """A replica with its trainers, and what it told."""

    def __init__(self) -> None:
        self.trainers: list[StepTrainer] = []
        self.evaluations: list[Evaluation] = []

    @asynccontextmanager
    async def replica(
        self, initial: Callable[[], np.ndarray] = lambda: INITIAL_P
    ) -> AsyncIterator[TrainingReplica]:
        events = ReplicaEvents(lambda _: None, lambda *_: None, self.evaluations.append)
        with SharedBuffers.create(P) as buffers:

            @asynccontextmanager
            async def open_trainer() -> AsyncIterator[StepTrainer]:
                self.trainers.append(StepTrainer(buffers))
                yield self.trainers[-1]

            async with TrainingReplica.open(
                SPEC, 64, initial(), buffers, open_trainer, events
            ) as replica:
                yield replica


async def train(replica: TrainingReplica, slots: Ranges) -> Ranges:
    slots = union(slots, replica.carried)
    return await replica.train(slots, steps=count(slots), num_done=0, num_planned=count(slots))


def test_a_round_moves_the_state_by_the_outer_step() -> None:
    async def main() -> None:
        async with Bench().replica() as replica:
            await train(replica, ((0, 3),))
            delta_P = await replica.pseudo_gradient()
            np.testing.assert_allclose(delta_P, -3, rtol=1e-6)
            staged = await replica.stage(delta_P)
            assert replica.state_digest != staged
            assert await replica.commit(staged, is_merged=True)
            assert replica.state_digest == staged
            expected_P, _ = outer_step(
                INITIAL_P, np.zeros(P, np.float32), delta_P, lr=0.5, momentum=0.5
            )
            assert np.array_equal(replica.theta_P, expected_P)
            assert replica.carried == ()
            assert await train(replica, ()) == ()
            assert not (await replica.pseudo_gradient()).any()

    run(main())


def test_the_parameters_that_it_has_begun_with_are_not_held_beside_its_own() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def initial() -> np.ndarray:
        initial_P = INITIAL_P.copy()
        made.append(weakref.ref(initial_P))
        return initial_P

    async def main() -> None:
        async with Bench().replica(initial) as replica:
            assert np.array_equal(replica.theta_P, INITIAL_P)
            assert [ref() for ref in made] == [None]

    run(main())


def test_a_staged_step_that_is_not_certified_changes_nothing() -> None:
    async def main() -> None:
        async with Bench().replica() as replica:
            before = replica.state_digest
            await replica.stage(np.ones(P, np.float32))
            assert not await replica.commit(bytes(32), is_merged=False)
            assert replica.state_digest == before
            assert np.array_equal(replica.theta_P, INITIAL_P)

    run(main())


def test_local_work_that_was_not_merged_is_carried_to_the_new_state() -> None:
    async def main() -> None:
        async with Bench().replica() as replica:
            await train(replica, ((0, 2),))
            staged = await replica.stage(np.full(P, 0.25, np.float32))  # of the others alone
            assert await replica.commit(staged, is_merged=False)
            assert await train(replica, ()) == ((0, 2),)
            np.testing.assert_allclose(await replica.pseudo_gradient(), -2, atol=1e-5)
            await replica.drop_local()
            assert await train(replica, ()) == ()
            assert not (await replica.pseudo_gradient()).any()

    run(main())


def test_a_joiner_adopts_the_current_state_or_the_one_before_chunk_by_chunk() -> None:
    async def main() -> None:
        async with Bench().replica() as donor, Bench().replica() as joiner:
            for value in (0.5, 0.125):
                before = donor.state_digest
                staged = await donor.stage(np.full(P, value, np.float32))
                await donor.commit(staged, is_merged=False)
            for state in (before, donor.state_digest):
                digests = donor.chunk_digests(state)
                assert digests is not None
                chunks = [donor.read_chunk(state, index) for index in range(len(digests))]
                await joiner.adopt(state, digests, [chunk or b"" for chunk in chunks])
                assert joiner.state_digest == state
            assert np.array_equal(joiner.theta_P, donor.theta_P)
            both = [await r.stage(np.ones(P, np.float32)) for r in (donor, joiner)]
            assert both[0] == both[1]

    run(main())


def test_chunks_that_do_not_make_up_the_state_are_refused() -> None:
    async def main() -> None:
        async with Bench().replica() as donor, Bench().replica() as joiner:
            state = donor.state_digest
            digests = donor.chunk_digests(state) or []
            chunks = [donor.read_chunk(state, index) or b"" for index in range(len(digests))]
            chunks[0] = bytes(len(chunks[0]))
            with pytest.raises(DigestMismatch):
                await joiner.adopt(state, digests, chunks)
            assert np.array_equal(joiner.theta_P, INITIAL_P)

    run(main())


def test_a_loss_that_becomes_nan_costs_the_round_and_keeps_the_trainer() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.replica() as replica:
            bench.trainers[0].failure = NonFiniteLoss("nan")
            with pytest.raises(WorkLost):
                await train(replica, ((0, 1),))
            assert await train(replica, ((0, 1),)) == ((0, 1),)
            assert len(bench.trainers) == 1

    run(main())


def test_a_trainer_that_dies_is_replaced_and_one_that_keeps_dying_ends_the_job() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.replica() as replica:
            for deaths in range(1, 4):
                bench.trainers[-1].failure = TrainingError("it died")
                with pytest.raises(WorkLost):
                    await train(replica, ((0, 1),))
                assert len(bench.trainers) == deaths + 1
            bench.trainers[-1].failure = TrainingError("it died")
            with pytest.raises(TrainingError, match="4 times in a row"):
                await train(replica, ((0, 1),))

    run(main())


def test_an_evaluation_that_is_due_comes_before_training() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.replica() as replica:
            replica.evaluate_before_next_round(7)
            await train(replica, ((0, 1),))
            assert [evaluation.num_rounds for evaluation in bench.evaluations] == [7]

    run(main())


def test_a_replica_that_was_closed_holds_no_state_and_says_so() -> None:
    async def main() -> None:
        async with Bench().replica() as replica:
            state = replica.state_digest
            assert replica.chunk_digests(state) is not None
        assert replica.chunk_digests(state) is None
        assert replica.read_chunk(state, 0) is None

    run(main())
