"""This project's training loop as a peer plays it: replica, trainer, rounds, all-reduce.

What `peers.job_run` wires, without what precedes it: the job is on the disk, control messages go
over plain TCP, and nothing is evaluated. Variants are joined by hyphens: `ahead2` trains ahead,
`site5` averages within sites every 5 steps, `even` gives slow peers as many steps as fast ones,
anything else names a codec.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from experiments.testbed.bare_transport import BareTransport
from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.zoonet_averager import JOB_ID, identity_of, make_averager
from experiments.training.accelerator import Accelerator
from experiments.training.job import Job
from experiments.training.paced import PacedTrainer
from peers import runtime
from zoonet.averaging import (
    Certificate,
    Chain,
    Participant,
    ParticipantEvents,
    RoundsConfig,
    SiteMean,
    TreeAllReduce,
)
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import Attempt
from zoonet.clock import SystemClock
from zoonet.config import num_slots, tokens_per_slot
from zoonet.crypto import PeerId
from zoonet.errors import TransportError
from zoonet.exact import Vector
from zoonet.ranges import count
from zoonet.training.buffers import SharedBuffers
from zoonet.training.replica import ReplicaEvents, TrainingReplica
from zoonet.transport import Lanes, Stream

PROGRESS: Final = "/benchmark/progress/1"
_DONE_BYTES: Final = 8


@dataclass(slots=True)
class Diary:
    """What a peer was at, and since when (monotonic); and the rounds that it saw certified."""

    phases: list[tuple[float, str]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def note(self, phase: str) -> None:
        """From now on it is at this."""
        self.phases.append((time.monotonic(), phase))


class ZoonetTraining:
    """See `Trainee`."""

    def __init__(self, stage: Stage, variant: str) -> None:
        settings = settings_of(variant)
        self._codec: str = settings["codec"]
        self._stage = stage
        self._job = Job.read(Path(stage.options["job"]), **settings)
        self._accelerator = Accelerator(stage.options["step_s"][stage.peer])
        self._diary = Diary()
        self._numbers = {identity_of(peer).peer_id: peer for peer in range(stage.num_peers)}
        self._transport = BareTransport(identity_of(stage.peer).peer_id, stage.address)
        self._stack = AsyncExitStack()
        self._trainers: list[PacedTrainer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._participant: Participant
        self._playing: asyncio.Task[None] | None = None
        self._site: SiteMean | None = None

    async def start(self) -> Hello:
        runtime.tame_allocator()
        stage = self._stage
        await self._stack.enter_async_context(self._transport.listening())
        variant = "" if self._codec == "fp32" else self._codec
        averager = await make_averager(stage, variant, self._transport, self._stack)
        self._site = await self._site_mean(averager.lanes)
        self._participant = Participant(
            identity_of(stage.peer),
            SystemClock(),
            self._transport,
            Chain(JOB_ID, num_slots(self._job.prepared)),
            await self._open_replica(),
            _Noted(averager, self._diary),
            self._config(),
            ParticipantEvents(lambda: set(self._numbers), self._diary.note, self._on_round),
            self._site,
        )
        await self._participant.serve()
        await self._transport.serve(PROGRESS, self._hear)
        place = [stage.address, self._transport.port]
        return {"peer_id": self._transport.peer_id, "place": place}

    def _config(self) -> RoundsConfig:
        training, peers = self._job.prepared.training, self._job.prepared.peers
        return RoundsConfig(
            inner_steps=training.inner_steps,
            is_dynamic=training.dynamic_steps,
            ahead=training.ahead,
            site_steps=training.site_steps,
            min_founders=peers.min,
            max_members=peers.max,
        )

    async def _site_mean(self, lanes: Lanes) -> SiteMean | None:
        config = self._config()
        if not config.site_steps:
            return None
        site = SiteMean(lanes, JOB_ID, self._job.prepared.num_parameters, config)
        await site.serve()
        self._stack.push_async_callback(site.close)
        return site

    async def _open_replica(self) -> TrainingReplica:
        prepared = self._job.prepared
        buffers = self._stack.enter_context(SharedBuffers.create(prepared.num_parameters))

        @contextlib.asynccontextmanager
        async def open_trainer() -> Any:
            start = self._job.start()
            async with PacedTrainer.open_paced(start, buffers, self._accelerator) as trainer:
                self._trainers.append(trainer)
                yield trainer

        return await self._stack.enter_async_context(
            TrainingReplica.open(
                prepared.training,
                tokens_per_slot(prepared),
                self._job.initial_P(),
                buffers,
                open_trainer,
                ReplicaEvents(lambda _: None, lambda *_: None, lambda _: None),
            )
        )

    async def connect(self, hellos: list[Hello]) -> None:
        for hello in hellos:
            host, port = hello["place"]
            self._transport.learn(PeerId(hello["peer_id"]), host, port)

    async def train(self) -> None:
        self._playing = asyncio.create_task(self._participant.run(), name="rounds")

    # --- what the job's topic is in a real network --------------------------------------------

    async def _on_round(self, certificate: Certificate) -> None:
        result = certificate.result
        slots = {self._numbers[PeerId(s.peer)]: count(s.slots) for s in result.contributions}
        self._diary.rounds.append(
            {
                "index": result.index,
                "at": time.monotonic(),
                "slots": slots,
                "num_members": len(result.members),
            }
        )
        for peer_id in set(self._numbers) - {self._transport.peer_id}:
            task = asyncio.create_task(self._tell(peer_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self, peer_id: PeerId) -> None:
        chain = self._participant.chain
        try:
            stream = await self._transport.open(peer_id, PROGRESS)
            await stream.send(chain.num_done.to_bytes(_DONE_BYTES, "big") + chain.head)
            await stream.close()
        except TransportError:
            pass  # it is dead, and told when it asks

    async def _hear(self, stream: Stream) -> None:
        said = await stream.receive(64)
        num_done = int.from_bytes(said[:_DONE_BYTES], "big")
        self._participant.hint(stream.peer_id, num_done, said[_DONE_BYTES:])

    # --- what came of it ----------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        if self._playing is not None and self._playing.done():
            self._playing.result()  # raises what ended it
        answers = [answer for trainer in self._trainers for answer in trainer.answers]
        return self._accelerator.figures() | {
            "phases": self._diary.phases,
            "rounds": self._diary.rounds,
            "trained": [
                {"slots": count(a.slots), "seconds": a.seconds, "idle_s": a.idle_s} for a in answers
            ],
            "num_rounds": len(self._participant.chain),
            "digest": self._participant.chain.head.hex(),
            "site": self._site and {"num_met": self._site.num_met, "waited_s": self._site.waited_s},
        }

    async def close(self) -> None:
        tasks = [*self._tasks, *([self._playing] if self._playing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()


def settings_of(variant: str) -> dict[str, Any]:
    """The settings of `training` that a contender's variant names."""
    settings: dict[str, Any] = {"ahead": 0.0, "codec": "fp32", "dynamic_steps": True}
    settings["site_steps"] = 0
    for part in variant.split("-") if variant else ():
        if part.startswith("ahead"):
            settings["ahead"] = float(part.removeprefix("ahead"))
        elif part.startswith("site"):
            settings["site_steps"] = int(part.removeprefix("site"))
        elif part == "even":
            settings["dynamic_steps"] = False
        else:
            settings["codec"] = part
    return settings


class _Noted:
    """An `Averager` that writes down when bytes travel and when they have arrived."""

    def __init__(self, averager: TreeAllReduce, diary: Diary) -> None:
        self._averager = averager
        self._diary = diary

    def own_links(self) -> PeerLinks:
        return self._averager.own_links()

    async def meet(self, peers: Collection[PeerId]) -> None:
        await self._averager.meet(peers)

    async def commit(self, contribution_P: Vector) -> bytes:
        self._diary.note("committing")
        return await self._averager.commit(contribution_P)

    async def average(self, attempt: Attempt) -> Vector:
        self._diary.note("transferring")
        mean_P = await self._averager.average(attempt)
        self._diary.note("voting")
        return mean_P

    def settle(self, *, is_certified: bool, is_merged: bool) -> None:
        self._averager.settle(is_certified=is_certified, is_merged=is_merged)

    async def slice_digests(self, number: int) -> tuple[bytes, ...]:
        return await self._averager.slice_digests(number)
