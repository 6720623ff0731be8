"""One peer's part in a run, on the network's event loop: agree, play rounds, hand over the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from zoonet.averaging import (
    Certificate,
    Chain,
    Participant,
    ParticipantEvents,
    RoundsConfig,
    TreeAllReduce,
)
from zoonet.client.loop.founding import FRESH_S, RETRY_S, SETTLE_S, Access, Founded, Founding
from zoonet.client.loop.spec import RunSpec
from zoonet.codecs import codec as codec_named
from zoonet.crypto import PeerId
from zoonet.exact import Vector
from zoonet.jobs.reporter import Reporter, Status
from zoonet.records import Progress, Signed
from zoonet.training.buffers import SharedBuffers
from zoonet.training.messages import StepDone
from zoonet.training.own_loop import OwnLoop
from zoonet.training.replica import Evaluation, ReplicaEvents, TrainingReplica
from zoonet.transport import ServingScope, Transport

MEET_S: Final = 10.0  # for those who were there before to be heard of
LINGER_S: Final = 5.0  # after the end, for others who still lack the final state

log = logging.getLogger(__name__)


class LoopRun:
    """Plays rounds for an `OwnLoop` until every slot is certified."""

    def __init__(
        self, access: Access, spec: RunSpec, loop: OwnLoop, own_P: Vector, *, name: str
    ) -> None:
        self.status = Status(name=name)
        self.chain: Chain | None = None
        self.job_id = ""
        self.is_finished = asyncio.Event()
        self._access = access
        self._spec = spec
        self._training = spec.training()
        self._loop = loop
        self._own_P = own_P
        self._replica: TrainingReplica | None = None
        self._participant: Participant | None = None
        self._reporter: Reporter

    async def run(self) -> None:
        """Take part until the run's end, and some seconds longer for those who lack it.

        Raises ConfigError where the run is another than this one, TrainingError, StorageError,
        TransportError.
        """
        founding = Founding(self._access, self._spec, self._own_P)
        try:
            founded: Founded | None = await founding.settle()
            while founded is not None:
                founded = await self._stay(founding, founded)
        finally:
            founding.close()

    async def _stay(self, founding: Founding, founded: Founded) -> Founded | None:
        """Take part in a run to its end (None), or until there is one to go over to."""
        self._own_P = founded.initial_P
        self.job_id = founded.job_id
        self.chain = None
        self._reporter = Reporter(self._access, founded.job_id, self.status, self._on_heard)
        async with asyncio.TaskGroup() as tasks:
            part = tasks.create_task(self._take_part(founding, founded))
            looking = tasks.create_task(founding.outdone(founded, self._is_certified))
            beside = (
                tasks.create_task(founding.keep_open(founded)),
                tasks.create_task(self._reporter.run()),
            )
            await asyncio.wait({part, looking}, return_when=asyncio.FIRST_COMPLETED)
            better = None if part.done() else looking.result()
            if better is None:
                await asyncio.wait({part})
            else:
                log.info("job=%s is left for job=%s, begun before", self.job_id, better.job_id)
            for task in (part, looking, *beside):
                task.cancel()
        return better

    def _is_certified(self) -> bool:
        return self.chain is not None and len(self.chain) > 0

    async def _take_part(self, founding: Founding, founded: Founded) -> None:
        async with self._replica_of(founded) as replica:
            self._replica = replica
            try:
                await self._play(founding, founded, replica)
            finally:
                self._replica = self._participant = None

    @asynccontextmanager
    async def _replica_of(self, founded: Founded) -> AsyncIterator[TrainingReplica]:
        events = ReplicaEvents(self._on_step, self._on_trained, self._on_evaluated)
        with SharedBuffers.create(self._spec.num_parameters) as buffers:
            async with TrainingReplica.open(
                self._training,
                self._spec.batch_size,
                founded.initial_P,
                buffers,
                lambda: self._loop.open(buffers),
                events,
            ) as replica:
                yield replica

    async def _play(self, founding: Founding, founded: Founded, replica: TrainingReplica) -> None:
        codec = codec_named(self._training.codec)
        if not codec.is_exact:
            await asyncio.to_thread(codec.prepare)  # compiles, in the middle of no round
        lanes, size = self._access.lanes, self._spec.num_parameters
        averager = TreeAllReduce(lanes, founded.job_id, size, codec=codec)
        scope = ServingScope(self._access.transport)
        await averager.serve()
        try:
            participant = self._participant_of(founded, replica, averager, scope)
            await participant.serve()
            self._participant, self.chain = participant, participant.chain
            await self._meet(founding, founded)
            for record in list(self._reporter.others.values()):
                self._on_heard(record)
            await participant.run()
            await self._end(replica)
        finally:
            await scope.end()
            await averager.close()

    async def _meet(self, founding: Founding, founded: Founded) -> None:
        """Hear of the others: those who come together begin together, and nobody beside a chain.

        Of a run that has just been founded everyone who has come to it by now, of an older one
        anyone who was there before.
        """
        await self._reporter.say_now("waiting")
        others, num_awaited = founded.others, min(1, len(founded.others))
        if founded.founded_at > self._access.clock.now() - FRESH_S:
            await asyncio.sleep(SETTLE_S)
            others |= await founding.others()
            num_awaited = len(others)
        await self._reporter.read()
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + MEET_S
        while len(others & self._reporter.others.keys()) < num_awaited:
            if loop.time() > give_up_at:
                log.info("job=%s some who came before say nothing", founded.job_id)
                break
            await asyncio.sleep(RETRY_S)
            await self._reporter.read()

    async def _end(self, replica: TrainingReplica) -> None:
        self._loop.conclude(await replica.outer_parameters())
        await self._reporter.say_now("finished")
        self.is_finished.set()
        assert self.chain is not None
        if len(self.chain.roster) > 1:
            await asyncio.sleep(LINGER_S)

    def _participant_of(
        self,
        founded: Founded,
        replica: TrainingReplica,
        averager: TreeAllReduce,
        transport: Transport,
    ) -> Participant:
        config = self._spec.config
        return Participant(
            self._access.identity,
            self._access.clock,
            transport,
            Chain(founded.job_id, self._spec.num_slots),
            replica,
            averager,
            RoundsConfig(
                inner_steps=config.inner_steps,
                is_dynamic=config.dynamic_steps,
                ahead=config.ahead,
                min_founders=config.min_peers,
                max_members=config.max_peers,
            ),
            ParticipantEvents(self._founders, self._on_phase, self._on_round),
        )

    async def outer_parameters(self) -> Vector:
        """Return a copy of the outer parameters (P,), as last certified."""
        if self._replica is None:
            return self._own_P.copy()
        return await self._replica.outer_parameters()

    # --- what the rounds need to know, and tell -----------------------------------------------

    def _founders(self) -> set[PeerId]:
        return self._reporter.founders() | {self._access.identity.peer_id}

    def _on_heard(self, record: Signed[Any]) -> None:
        body = record.body
        if isinstance(body, Progress) and self._participant is not None and body.num_rounds:
            num_done = body.num_tokens // self._spec.batch_size
            self._participant.hint(record.author, num_done, body.head)

    def _on_phase(self, phase: Any) -> None:
        if phase != self.status.phase:
            self._reporter.say(phase)

    def _on_step(self, step: StepDone) -> None:
        self.status.tokens_per_s = step.tokens_per_s

    def _on_trained(self, _loss: float, samples_per_s: float) -> None:
        self.status.tokens_per_s = samples_per_s

    def _on_evaluated(self, _: Evaluation) -> None:
        """Nobody asks for one: the loop's owner evaluates."""

    async def _on_round(self, certificate: Certificate) -> None:
        assert self._participant is not None
        chain = self.chain = self._participant.chain
        result = certificate.result
        self.status.num_rounds = len(chain)
        self.status.head = chain.head
        self.status.num_tokens = chain.num_done * self._spec.batch_size
        self.status.num_members = len(result.members)
        self.status.num_contributors = len(result.contributions)
        self._reporter.say()
