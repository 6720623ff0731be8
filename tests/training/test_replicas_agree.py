"""Replicas with real training behind them: they agree to the bit, and outlive their trainers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from zoonet.errors import NonFiniteLoss, TrainingError
from zoonet.exact import weighted_mean
from zoonet.ranges import Ranges, count, union
from zoonet.testing import run
from zoonet.training.buffers import SharedBuffers
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Evaluated
from zoonet.training.replica import Evaluation, ReplicaEvents, TrainingReplica


class Mortal:
    """An inline trainer that fails where the test says so."""

    def __init__(self, inner: InlineTrainer) -> None:
        self._inner = inner
        self.failures: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        if self.failures:
            raise self.failures.pop()
        return await self._inner.evaluate(max_tokens)


class Peer:
    """A replica and what it is made of."""

    def __init__(self, job: Any, stack: AsyncExitStack) -> None:
        self.job, self.stack = job, stack
        self.trainers: list[Mortal] = []
        self.evaluations: list[Evaluation] = []

    @classmethod
    async def open(cls, job: Any, stack: AsyncExitStack) -> Peer:
        peer = cls(job, stack)
        buffers = stack.enter_context(SharedBuffers.create(job.num_parameters))

        @asynccontextmanager
        async def open_trainer() -> AsyncIterator[Mortal]:
            async with InlineTrainer.open(job.start, buffers) as inner:
                peer.trainers.append(Mortal(inner))
                yield peer.trainers[-1]

        events = ReplicaEvents(lambda _: None, lambda *_: None, peer.evaluations.append)
        peer.replica = await stack.enter_async_context(
            TrainingReplica.open(job.training, 64, job.initial_P, buffers, open_trainer, events)
        )
        return peer

    async def train(self, *slots: tuple[int, int]) -> Ranges:
        queue = union(slots, self.replica.carried)
        steps = count(queue)
        return await self.replica.train(queue, steps=steps, num_done=0, num_planned=steps)


async def average(peers: list[Peer], weights: list[int]) -> set[bytes]:
    """A round without a network: the same mean for all. Returns the digests of what it came to."""
    parts = [await peer.replica.pseudo_gradient() for peer in peers if weights[peers.index(peer)]]
    mean_P = weighted_mean(parts, [weight for weight in weights if weight])
    digests = set()
    for peer, weight in zip(peers, weights, strict=True):
        digest = await peer.replica.stage(mean_P)
        assert await peer.replica.commit(digest, is_merged=weight > 0)
        digests.add(digest)
    return digests


def test_two_peers_that_train_other_data_end_each_round_bit_identical(job: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            left, right = [await Peer.open(job, stack) for _ in range(2)]
            for number in range(3):
                await left.train((10 * number, 10 * number + 4))
                await right.train((10 * number + 5, 10 * number + 7))
                assert len(await average([left, right], [4, 2])) == 1
                assert left.replica.theta_P.tobytes() == right.replica.theta_P.tobytes()
                assert left.replica.state_digest == right.replica.state_digest

    run(main())


def test_a_joiner_that_adopts_the_state_goes_on_bit_identically(job: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            left, late = [await Peer.open(job, stack) for _ in range(2)]
            await left.train((0, 4))
            await average([left], [4])
            state = left.replica.state_digest
            digests = left.replica.chunk_digests(state)
            assert digests is not None
            chunks = [left.replica.read_chunk(state, index) for index in range(len(digests))]
            await late.replica.adopt(state, digests, chunks)
            assert late.replica.state_digest == state
            await left.train((4, 8))
            await late.train((8, 12))
            assert len(await average([left, late], [4, 4])) == 1

    run(main())


def test_work_that_was_left_out_is_carried_and_merged_a_round_later(job: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            left, right = [await Peer.open(job, stack) for _ in range(2)]
            await left.train((0, 4))
            await right.train((4, 8))
            carried_P = await right.replica.pseudo_gradient()
            await average([left, right], [4, 0])
            assert await right.train() == ((4, 8),)
            np.testing.assert_allclose(await right.replica.pseudo_gradient(), carried_P, atol=1e-6)
            await left.train((8, 12))
            assert len(await average([left, right], [4, 4])) == 1

    run(main())


def test_a_trainer_that_dies_over_an_evaluation_is_replaced(job: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            peer = await Peer.open(job, stack)
            await peer.train((0, 2))
            peer.trainers[0].failures = [TrainingError("killed")]
            peer.replica.evaluate_before_next_round(1)
            assert await peer.train((2, 4)) == ((0, 4),)  # what died with it once more
            assert len(peer.trainers) == 2
            assert [evaluation.num_rounds for evaluation in peer.evaluations] == [1]

    run(main())


def test_a_model_that_diverged_is_not_evaluated_and_costs_no_work(job: Any) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            peer = await Peer.open(job, stack)
            peer.trainers[0].failures = [NonFiniteLoss("the held-out loss is inf")]
            peer.replica.evaluate_before_next_round(1)
            assert await peer.train((2, 4)) == ((2, 4),)
            assert len(peer.trainers) == 1 and peer.evaluations == []
            peer.trainers[0].failures = [NonFiniteLoss("the held-out loss is inf")]
            with pytest.raises(NonFiniteLoss):
                await peer.replica.evaluate(2)

    run(main())
