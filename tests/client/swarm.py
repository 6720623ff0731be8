"""A swarm in memory with a submitter and peers that hold its finished job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from zoonet.averaging import Certificate, RoundResult, genesis
from zoonet.averaging.messages import Share, cast_vote
from zoonet.blocks import BlockExchange, MemoryBlockStore, put_bytes, read_bytes
from zoonet.client import Network
from zoonet.config import ComputeJob, PreparedJob, decode, num_slots, tokens_per_slot
from zoonet.crypto import Identity
from zoonet.jobs import Catalog, JobView
from zoonet.records import (
    JobResult,
    Progress,
    RecordStore,
    job_topic,
    sign,
)
from zoonet.testing import MemorySwarm
from zoonet.training.export import to_safetensors
from zoonet.training.models import layout_of
from zoonet.transport import Transport

ALICE, BOB, CAROL, DAVE = (Identity(bytes([number]) * 32) for number in range(11, 15))


@dataclass(frozen=True)
class Access:
    identity: Identity
    transport: Transport
    records: RecordStore


def access(swarm: MemorySwarm, identity: Identity) -> Access:
    transport, records = swarm.peer(identity)
    return Access(identity, transport, records)


async def network_of(swarm: MemorySwarm, identity: Identity = ALICE) -> Network:
    network = Network(access(swarm, identity), MemoryBlockStore(), clock=swarm.clock)
    await network.serve()
    return network


def tiny_job(folder: Path, **changes: Any) -> ComputeJob:
    (folder / "text.txt").write_text("to be or not to be, that is the question " * 20)
    fields: dict[str, Any] = {
        "model_config": {"num_layers": 1, "num_heads": 1, "width": 8, "context": 8},
        "data_config": {"text": str(folder / "text.txt"), "tokenizer": "char"},
        "training_config": {"tokens": 1000},
    }
    return ComputeJob(**fields | changes)


class FakeWorker:
    """Takes a job, fetches its blocks and publishes what it is told to, without training."""

    def __init__(self, swarm: MemorySwarm, identity: Identity) -> None:
        self.identity = identity
        self.swarm = swarm
        self.access = access(swarm, identity)
        self.store = MemoryBlockStore()
        self.exchange = BlockExchange(self.access.transport, self.store)
        self.catalog = Catalog(identity, self.access.records, swarm.clock)
        self._sequence = 0

    async def fetch(self, job_id: str) -> PreparedJob:
        await self.exchange.serve()
        job = await self.catalog.record(job_id)
        prepared = decode(await self.exchange.fetch(job.body.spec_cid, [job.author]))
        for cid in (prepared.parameters_cid, prepared.tokenizer_cid, prepared.data.train_cid):
            await self.exchange.fetch_file(cid, [job.author], owner=job_id)
        return prepared

    async def say(self, job_id: str, **said: Any) -> None:
        self._sequence += 1
        fields: dict[str, Any] = {
            "job_id": job_id,
            "name": f"worker {self.identity.peer_id[-3:]}",
            "phase": "training",
            "num_rounds": 0,
            "head": bytes(32),
            "num_tokens": 0,
        }
        record = sign(
            self.identity,
            Progress(**fields | said),
            sequence=self._sequence,
            expires_at=self.swarm.clock.now() + 60.0,
        )
        await self.access.records.publish(record)
        await self.access.records.announce(job_topic(job_id), record)

    def chain(self, job_id: str, prepared: PreparedJob) -> list[Certificate]:
        """One round that did everything, certified by this worker alone."""
        result = RoundResult(
            job_id=job_id,
            index=0,
            view=0,
            parent=genesis(job_id),
            members=(self.identity.peer_id,),
            joiners=(),
            contributions=(Share(self.identity.peer_id, ((0, num_slots(prepared)),)),),
            state=bytes(32),
        )
        return [Certificate(result=result, votes=(cast_vote(self.identity, result),))]

    def model(self, prepared: PreparedJob) -> bytes:
        theta_P = np.frombuffer(read_bytes(self.store, prepared.parameters_cid), "<f4")
        return to_safetensors(layout_of(prepared.model), theta_P + np.float32(0.5))

    async def publish(
        self, job_id: str, prepared: PreparedJob, model: bytes, chain: bytes
    ) -> JobView:
        body = JobResult(
            job_id=job_id,
            model_cid=put_bytes(self.store, model, owner=job_id),
            model_bytes=len(model),
            chain_cid=put_bytes(self.store, chain, owner=job_id),
            head=bytes(32),
            num_rounds=1,
            num_tokens=num_slots(prepared) * tokens_per_slot(prepared),
            eval_loss=1.25,
        )
        now = self.swarm.clock.now()
        record = sign(self.identity, body, sequence=1, expires_at=now + 600.0)
        await self.access.records.publish(record)
        await self.access.records.announce(job_topic(job_id), record)
        return await self.catalog.view(job_id)

    async def do(self, job_id: str) -> None:
        """The whole job."""
        prepared = await self.fetch(job_id)
        await self.say(job_id)
        chain = msgspec.msgpack.encode(self.chain(job_id, prepared))
        await self.publish(job_id, prepared, self.model(prepared), chain)
