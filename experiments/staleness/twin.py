"""Replicas of a job in one process: all of the production optimizer, and rounds without a wire.

Each replica is a `TrainingReplica` with a `Workload` behind it, as in a peer. A round's mean comes
so many steps after the contributions, counted and not timed, so a run is a function of its seed.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import numpy as np

from zoonet.blocks import BlockStore, read_bytes, write_file
from zoonet.client.prepare import prepare
from zoonet.config import ComputeJob, PreparedJob, encode, num_slots, tokens_per_slot
from zoonet.exact import Vector, weighted_mean
from zoonet.ranges import Ranges, count, take
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import OnStep
from zoonet.training.messages import Evaluated, Sample, Start, Train, Trained
from zoonet.training.replica import ReplicaEvents, TrainingReplica
from zoonet.training.session import TrainingSession
from zoonet.training.workload import Workload


class CountedTrainer:
    """The `Trainer` Protocol without a clock: it goes ahead as many steps as it is told to."""

    device = "cpu"

    def __init__(self, session: TrainingSession, buffers: SharedBuffers) -> None:
        self._session = session
        self._buffers = buffers
        ticks = itertools.count()
        self._work = Workload(session, buffers, lambda: float(next(ticks)))
        self.layout = session.layout

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        """Train what the command asks for, and nothing beyond it."""
        self._work.take_on(command)
        while not self._work.is_due:
            self._work.step()
        return self._work.report()

    def go_ahead(self, num_steps: int) -> None:
        """Take so many steps of those that the last command left."""
        for _ in range(num_steps):
            if self._work.is_more:
                self._work.step_ahead()

    async def merge(self, *, is_merged: bool) -> None:
        """Move along."""
        self._work.merge(is_merged=is_merged)

    async def stop(self) -> None:
        """Nothing is ever under way."""

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        """Measure the outer parameters."""
        loss, tokens = self._session.evaluate(
            self._buffers.global_P, max_tokens=max_tokens, is_stopped=lambda: False
        )
        return Evaluated(loss=loss, tokens=tokens)

    async def sample(self, request: Sample) -> str:
        """Continue a text."""
        return self._session.sample(self._buffers.global_P, request)


class Prepared:
    """A job and its files, as a peer has them."""

    def __init__(self, job: ComputeJob, folder: Path) -> None:
        store = BlockStore(folder / "blocks")
        self.job: PreparedJob = prepare(job, store)
        data = self.job.data
        for cid, name in (
            (data.train_cid, "train"),
            (data.heldout_cid, "heldout"),
            (self.job.tokenizer_cid, "tokenizer"),
        ):
            write_file(store, cid, folder / name)
        self.initial_P: Vector = np.frombuffer(read_bytes(store, self.job.parameters_cid), "<f4")
        self.start = Start(
            prepared=encode(self.job),
            train_path=str(folder / "train"),
            heldout_path=str(folder / "heldout"),
            tokenizer_path=str(folder / "tokenizer"),
            device="cpu",
        )


class Twin:
    """`num_replicas` peers of a job whose means come `delay` steps late. Use `open`."""

    def __init__(
        self,
        prepared: Prepared,
        replicas: list[TrainingReplica],
        trainers: list[CountedTrainer],
        delay: int,
    ) -> None:
        self.replicas = replicas
        self._trainers = trainers
        self._delay = delay
        self._steps = prepared.job.training.inner_steps
        self._free: Ranges = ((0, num_slots(prepared.job)),)
        self._leases: list[Ranges] = [() for _ in replicas]
        self._num_done = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, prepared: Prepared, *, num_replicas: int, delay: int
    ) -> AsyncIterator[Self]:
        """Load the job so many times."""
        replicas, trainers = [], []
        async with AsyncExitStack() as stack:
            for _ in range(num_replicas):
                buffers = stack.enter_context(SharedBuffers.create(prepared.job.num_parameters))
                session = stack.enter_context(TrainingSession(prepared.start))
                trainer = CountedTrainer(session, buffers)
                trainers.append(trainer)
                replicas.append(
                    await stack.enter_async_context(_replica_of(prepared, trainer, buffers))
                )
            yield cls(prepared, replicas, trainers, delay)

    async def play(self) -> None:
        """Train the job to its end."""
        while self._free or any(self._leases):
            await self._play_round()

    async def _play_round(self) -> None:
        for at, lease in enumerate(self._leases):
            more, self._free = take(self._free, self._steps + self._delay - count(lease))
            self._leases[at] = (*lease, *more)
        done, deltas = [], []
        wanted = [min(self._steps, count(lease)) for lease in self._leases]
        for replica, lease, steps in zip(self.replicas, self._leases, wanted, strict=True):
            done.append(
                await replica.train(
                    lease, steps=steps, num_done=self._num_done, num_planned=sum(wanted)
                )
            )
            deltas.append(await replica.pseudo_gradient())
        for trainer in self._trainers:
            trainer.go_ahead(self._delay)
        await self._certify(done, deltas)

    async def _certify(self, done: list[Ranges], deltas: list[Vector]) -> None:
        weights = [count(slots) for slots in done]
        given = [
            (delta_P, weight) for delta_P, weight in zip(deltas, weights, strict=True) if weight
        ]
        mean_P = weighted_mean([delta_P for delta_P, _ in given], [weight for _, weight in given])
        for at, replica in enumerate(self.replicas):
            state = await replica.stage(mean_P)
            await replica.commit(state, is_merged=weights[at] > 0)
            self._leases[at] = tuple(take(self._leases[at], weights[at])[1])
        self._num_done += sum(weights)

    async def loss(self) -> float:
        """Held-out loss of the outer parameters, in nats a token, over the whole held-out text."""
        return (await self.replicas[0].evaluate(0)).loss


@asynccontextmanager
async def _replica_of(
    prepared: Prepared, trainer: CountedTrainer, buffers: SharedBuffers
) -> AsyncIterator[TrainingReplica]:
    @asynccontextmanager
    async def open_trainer() -> AsyncIterator[CountedTrainer]:
        yield trainer

    events = ReplicaEvents(lambda _: None, lambda *_: None, lambda _: None)
    async with TrainingReplica.open(
        prepared.job.training,
        tokens_per_slot(prepared.job),
        prepared.initial_P,
        buffers,
        open_trainer,
        events,
    ) as replica:
        yield replica
