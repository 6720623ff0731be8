"""A worker's part in one job: fetch it, train it with others, hold the model ready."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from peers import runtime
from peers.evaluations import Evaluations, evaluator_of
from peers.node import Node
from zoonet.averaging import (
    Certificate,
    Certificates,
    Chain,
    FileLog,
    Participant,
    ParticipantEvents,
    RoundsConfig,
    SiteMean,
    TreeAllReduce,
)
from zoonet.averaging.participant import early_end
from zoonet.blocks import Manifest, blocks_of, call_store, put_bytes, read_bytes, write_file
from zoonet.codecs import codec as codec_named
from zoonet.config import PreparedJob, decode, num_slots, tokens_per_slot
from zoonet.crypto import PeerId, short
from zoonet.errors import ConfigError, ShardUnavailable, TransportError
from zoonet.exact import Vector
from zoonet.jobs.reporter import MAX_FIGURE, Reporter, Status
from zoonet.ranges import Ranges, count, difference, listed
from zoonet.records import JobRecord, JobResult, Progress, Signed, job_topic, sign
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import to_safetensors
from zoonet.training.handle import Trainer
from zoonet.training.messages import Start, StepDone
from zoonet.training.order import SampleOrder
from zoonet.training.replica import Evaluation, ReplicaEvents, TrainingReplica

RESULT_LIFETIME_S: Final = 7 * 24 * 3600.0
FETCH_PATIENCE_S: Final = 120.0  # how long the job's data may be nowhere to be had
REFRESH_INTERVAL_S: Final = 120.0
LINGER_S: Final = 5.0  # after the end, for others who still lack the final state
SPEC_BYTES: Final = 256 * 1024
TOKENIZER_BYTES: Final = 64 * 1024 * 1024

OpenTrainer = Callable[[Start, SharedBuffers], AbstractAsyncContextManager[Trainer]]

T = TypeVar("T")

log = logging.getLogger(__name__)


class JobCancelled(Exception):
    """The submitter withdrew the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a worker runs a job."""

    name: str
    data_dir: Path  # token files of the job lie here while it runs
    device: str = "auto"
    num_threads: int = 1
    gpu_share: float = 1.0  # of the GPU's memory
    is_compiled: bool = False  # through torch.compile


class JobRun:
    """One job on one peer, from its record to the published model."""

    def __init__(
        self, node: Node, job: Signed[JobRecord], config: RunConfig, open_trainer: OpenTrainer
    ) -> None:
        self._node = node
        self._job = job
        self._job_id = job.body.job_id
        self._config = config
        self._open_trainer = open_trainer
        self.status = Status(name=config.name)
        self._reporter = Reporter(node, self._job_id, self.status, self._on_heard)
        self._participant: Participant | None = None
        self._replica: TrainingReplica | None = None
        self._tokens_per_slot = 1
        self._evaluations = Evaluations()
        self._cancelled = asyncio.Event()
        self._skipped: Ranges = ()

    async def run(self, check: Callable[[PreparedJob], str]) -> None:
        """Take part until the job's end and publish the model.

        `check` returns why the prepared job does not fit this peer, or "". Raises ConfigError
        where it does not, JobCancelled, TrainingError, ShardUnavailable or StorageError.
        """
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(self._reporter.run())
            refreshing = tasks.create_task(self._keep_findable())
            working = tasks.create_task(self._work(check))
            cancelled = tasks.create_task(self._cancelled.wait())
            await asyncio.wait({working, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            was_cancelled = not working.done()
            for task in (reporting, refreshing, working, cancelled):
                task.cancel()
        if was_cancelled:
            self.status.note = "cancelled by its submitter"
            await self._reporter.say_now("finished")
            raise JobCancelled(f"job {self._job_id} was cancelled by its submitter")

    async def _keep_findable(self) -> None:
        """Publish the job's record again and again: its submitter may have left."""
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            try:
                await self._node.catalog.refresh([self._job_id])
            except TransportError as error:
                log.info("job record not refreshed: %s", error)

    async def give_up(self, reason: str) -> None:
        """Tell the others that this peer cannot go on, and why."""
        self.status.note = reason[:200]
        await self._reporter.say_now("failed")

    async def _work(self, check: Callable[[PreparedJob], str]) -> None:
        await self._reporter.read()
        raw = await self._fetch_block(self._job.body.spec_cid)
        prepared = decode(raw)
        if reason := check(prepared):
            raise ConfigError(f"job {self._job_id} does not fit this peer: {reason}")
        await self._fetch_files(prepared)
        try:
            async with self._replica_of(prepared, raw) as replica:
                await self._train(prepared, replica)
                await self._publish(prepared, replica)
                await asyncio.sleep(LINGER_S)
        except ShardUnavailable:
            if self._participant is None or not self._participant.chain.is_over:
                raise
            log.info("job=%s was finished by others, who hold its model", self._job_id)
            await self._reporter.say_now("finished")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """Where the job's token files lie while it runs."""
        return self._config.data_dir / self._job_id

    # --- fetching -----------------------------------------------------------------------------

    def _holders(self) -> Sequence[PeerId]:
        return (*self._reporter.holders(), self._job.author)

    async def _fetch_block(self, cid: str) -> bytes:
        return await self._patiently(
            lambda: self._node.exchange.fetch(cid, self._holders(), max_bytes=SPEC_BYTES)
        )

    async def _patiently(self, fetch: Callable[[], Awaitable[T]]) -> T:
        """Try again while nobody who holds it can be reached, up to FETCH_PATIENCE_S."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + FETCH_PATIENCE_S
        while True:
            try:
                return await fetch()
            except (ShardUnavailable, TransportError) as error:
                if loop.time() > give_up_at:
                    raise
                self.status.note = f"waiting for the job's data: {error}"
                self._reporter.say("joining")
                await asyncio.sleep(2.0)

    async def _fetch_files(self, prepared: PreparedJob) -> None:
        data = prepared.data
        sizes = (
            (data.train_cid, data.num_train_tokens * data.token_bytes),
            (data.heldout_cid, data.num_heldout_tokens * data.token_bytes),
            (prepared.parameters_cid, prepared.parameter_bytes),
        )
        for cid, num_bytes in sizes:
            manifest = await self._patiently(partial(self._fetch_file, cid, num_bytes))
            if manifest.size != num_bytes:
                raise ConfigError(f"a file of {manifest.size} bytes, the job says {num_bytes}")
        await self._patiently(partial(self._fetch_file, prepared.tokenizer_cid, TOKENIZER_BYTES))
        self.status.note = ""
        log.info("fetched job=%s name=%s", self._job_id, prepared.name)

    async def _fetch_file(self, cid: str, max_bytes: int) -> Manifest:
        return await self._node.exchange.fetch_file(
            cid, self._holders(), max_bytes=max_bytes, owner=f"job/{self._job_id}"
        )

    async def _file(self, cid: str, name: str) -> str:
        """Write a fetched file where the trainer can map it."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        store = self._node.exchange.store
        await call_store(store, write_file, store, cid, path)
        return str(path)

    # --- training -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _replica_of(
        self, prepared: PreparedJob, raw: bytes
    ) -> AsyncIterator[TrainingReplica]:
        start = Start(
            prepared=raw,
            train_path=await self._file(prepared.data.train_cid, "train.tokens"),
            heldout_path=await self._file(prepared.data.heldout_cid, "heldout.tokens"),
            tokenizer_path=await self._file(prepared.tokenizer_cid, "tokenizer.json"),
            device=self._config.device,
            num_threads=self._config.num_threads,
            gpu_share=self._config.gpu_share,
            is_compiled=self._config.is_compiled,
        )
        events = ReplicaEvents(self._on_step, self._on_trained, self._on_evaluated)
        with SharedBuffers.create(prepared.num_parameters) as buffers:
            async with TrainingReplica.open(
                prepared.training,
                tokens_per_slot(prepared),
                await self._initial_parameters(prepared),  # no name here holds them for all time
                buffers,
                lambda: self._open_trainer(start, buffers),
                events,
            ) as replica:
                yield replica

    async def _initial_parameters(self, prepared: PreparedJob) -> Vector:
        store = self._node.exchange.store
        initial = await call_store(store, read_bytes, store, prepared.parameters_cid)
        initial_P = np.frombuffer(initial, "<f4")
        if not np.isfinite(initial_P).all():
            raise ConfigError("the job's initial parameters are not finite")
        return initial_P

    async def _train(self, prepared: PreparedJob, replica: TrainingReplica) -> None:
        self._tokens_per_slot = tokens_per_slot(prepared)
        self._prepared = prepared
        self._replica = replica
        codec = codec_named(prepared.training.codec)
        if not codec.is_exact:
            await asyncio.to_thread(codec.prepare)  # compiles, in the middle of no round
        averager = TreeAllReduce(
            self._node.lanes, self._job_id, prepared.num_parameters, codec=codec
        )
        config = RoundsConfig(
            inner_steps=prepared.training.inner_steps,
            is_dynamic=prepared.training.dynamic_steps,
            ahead=prepared.training.ahead,
            site_steps=prepared.training.site_steps,
            min_founders=prepared.peers.min,
            max_members=prepared.peers.max,
        )
        await averager.serve()
        try:
            async with self._site_mean(prepared, config) as site:
                await self._play_rounds(prepared, replica, averager, config, site)
        finally:
            await averager.close()

    @asynccontextmanager
    async def _site_mean(
        self, prepared: PreparedJob, config: RoundsConfig
    ) -> AsyncIterator[SiteMean | None]:
        if not config.site_steps:
            yield None
            return
        site = SiteMean(self._node.lanes, self._job_id, prepared.num_parameters, config)
        await site.serve()
        try:
            yield site
        finally:
            await site.close()

    async def _play_rounds(
        self,
        prepared: PreparedJob,
        replica: TrainingReplica,
        averager: TreeAllReduce,
        config: RoundsConfig,
        site: SiteMean | None,
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        certificates = Certificates(FileLog(self._folder))
        participant = Participant(
            self._node.identity,
            self._node.clock,
            self._node.transport,
            Chain(self._job_id, num_slots(prepared), certificates),
            replica,
            averager,
            config,
            ParticipantEvents(self._founders, self._on_phase, self._on_round),
            site,
        )
        await participant.serve()
        self._participant = participant
        for record in list(self._reporter.others.values()):
            self._on_heard(record)
        await participant.run()
        if participant.chain.is_stuck:
            self.status.note = early_end(participant.chain)[:200]

    def _founders(self) -> set[PeerId]:
        return self._reporter.founders() | {self._node.peer_id}

    def _on_heard(self, record: Signed[Any]) -> None:
        body = record.body
        if isinstance(body, JobRecord) and body.job_id == self._job_id and body.is_cancelled:
            self._cancelled.set()
        if isinstance(body, Progress) and self._participant is not None and body.num_rounds:
            num_done = body.num_tokens // self._tokens_per_slot
            self._participant.hint(record.author, num_done, body.head)
            chain = self._participant.chain
            self._evaluations.note(chain, record.author, body.eval_round, body.eval_loss)

    def _on_phase(self, phase: Any) -> None:
        if phase != self.status.phase:
            self._reporter.say(phase)

    def _on_step(self, step: StepDone) -> None:
        self.status.tokens_per_s = step.tokens_per_s

    def _on_trained(self, loss: float, tokens_per_s: float) -> None:
        self.status.train_loss = max(0.0, loss)
        self.status.tokens_per_s = tokens_per_s

    def _on_evaluated(self, evaluation: Evaluation) -> None:
        self.status.eval_loss = max(0.0, evaluation.loss)
        self.status.eval_round = evaluation.num_rounds
        if self._participant is not None:
            chain, me = self._participant.chain, self._node.peer_id
            loss = min(self.status.eval_loss, MAX_FIGURE)
            self._evaluations.note(chain, me, evaluation.num_rounds, loss)
        log.info("evaluated rounds=%d loss=%.4f", evaluation.num_rounds, evaluation.loss)
        self._reporter.say()

    async def _on_round(self, certificate: Certificate) -> None:
        assert self._participant is not None and self._replica is not None
        chain = self._participant.chain
        result = certificate.result
        self.status.num_rounds = len(chain)
        self.status.head = chain.head
        self.status.num_tokens = chain.num_done * self._tokens_per_slot
        self.status.num_members = len(result.members)
        self.status.num_contributors = len(result.contributions)
        self._note_skipped(chain)
        self._reporter.say()
        num_rounds = result.index + 1
        is_due = num_rounds % self._prepared.training.eval_interval == 0
        if is_due and evaluator_of(result) == self._node.peer_id and not chain.is_finished:
            self._replica.evaluate_before_next_round(num_rounds)
        runtime.give_back_freed()

    def _note_skipped(self, chain: Chain) -> None:
        """Say which data the job goes on without, and where in the file it lies."""
        new = difference(chain.skipped, self._skipped)
        if not new:
            return
        self._skipped = chain.skipped
        prepared = self._prepared
        data, training = prepared.data, prepared.training
        order = SampleOrder(data.num_train_tokens, prepared.model.context, training.seed)
        slot = new[-1][0]
        places = order.slot_starts(slot, training.batch_size) * data.token_bytes
        log.warning(
            "job=%s goes on without slot=%d, the samples of %d bytes at %s of its training data",
            self._job_id,
            slot,
            (prepared.model.context + 1) * data.token_bytes,
            places.tolist(),
        )
        some = ", ".join(map(str, places[:4].tolist())) + (" ..." if places.size > 4 else "")
        self.status.note = (
            f"{count(chain.skipped)} data slots skipped, nobody could train them: "
            f"{listed(chain.skipped)[:60]}; the last begins at bytes {some} of the training data"
        )

    # --- the model ----------------------------------------------------------------------------

    async def _publish(self, prepared: PreparedJob, replica: TrainingReplica) -> None:
        assert self._participant is not None
        chain = self._participant.chain
        evaluation = await replica.evaluate(len(chain))
        model = to_safetensors(replica.layout, replica.theta_P)
        links = chain.certificates.encoded()
        model_cid = await self._keep(f"model/{self._job_id}", model)
        chain_cid = await self._keep(f"chain/{self._job_id}", links)
        now = self._node.clock.now()
        body = JobResult(
            job_id=self._job_id,
            model_cid=model_cid,
            model_bytes=len(model),
            chain_cid=chain_cid,
            head=chain.head,
            num_rounds=len(chain),
            num_tokens=chain.num_done * self._tokens_per_slot,
            eval_loss=min(max(0.0, evaluation.loss), MAX_FIGURE),
            eval_losses=self._evaluations.told(),
        )
        record = sign(
            self._node.identity, body, sequence=int(now * 1000), expires_at=now + RESULT_LIFETIME_S
        )
        await self._reporter.say_now("finished")
        await self._node.records.publish(record)
        await self._node.records.announce(job_topic(self._job_id), record)
        log.info(
            "finished job=%s rounds=%d loss=%.4f model=%s",
            self._job_id,
            len(chain),
            evaluation.loss,
            short(model_cid),
        )

    async def _keep(self, owner: str, content: bytes) -> str:
        store = self._node.exchange.store
        cid = await call_store(store, put_bytes, store, content)
        store.pin(owner, await call_store(store, blocks_of, store, cid))
        return cid
