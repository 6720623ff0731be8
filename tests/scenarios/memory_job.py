"""A whole swarm with real training in one process: workers, jobs and blocks in memory."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from peers.job_run import RunConfig
from peers.node import Node
from peers.worker import Worker
from tests.prepared import data_spec, model_spec, prepared_job
from zoonet.averaging import Certificate
from zoonet.blocks import BlockExchange, MemoryBlockStore, put_bytes, read_bytes
from zoonet.clock import Clock
from zoonet.config import PreparedJob, encode
from zoonet.config.job import PeersConfig, TrainingConfig
from zoonet.crypto import Identity
from zoonet.jobs import Catalog, JobView, ProviderPolicy
from zoonet.records import Hardware
from zoonet.testing import MemorySwarm
from zoonet.training.inline import InlineTrainer
from zoonet.training.models import initial_parameters
from zoonet.training.tokenizers import make_tokenizer
from zoonet.transport import StreamLanes

TEXT = "to be, or not to be, that is the question: whether it is nobler in the mind to suffer\n"


def identity_of(name: str) -> Identity:
    """The same key for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


@dataclass
class MemoryWorker:
    node: Node
    worker: Worker
    task: asyncio.Task[None]


@dataclass(frozen=True)
class Skewed:
    """A clock that is ahead of the truth by so many seconds, or behind."""

    truth: Clock
    ahead_s: float

    def now(self) -> float:
        return self.truth.now() + self.ahead_s


@dataclass
class Story:
    """Submitter and workers of one in-memory swarm."""

    folder: Path
    memory: MemorySwarm = field(default_factory=MemorySwarm)
    workers: dict[str, MemoryWorker] = field(default_factory=dict)

    async def node(self, name: str, *, skew_s: float = 0.0) -> Node:
        identity = identity_of(name)
        clock = Skewed(self.memory.clock, skew_s)
        transport, records = self.memory.peer(identity)
        exchange = BlockExchange(transport, MemoryBlockStore())
        await exchange.serve()
        catalog = Catalog(identity, records, clock)
        return Node(
            identity=identity,
            clock=clock,
            transport=transport,
            lanes=StreamLanes(transport),
            records=records,
            exchange=exchange,
            catalog=catalog,
        )

    async def add(
        self, name: str, *, step_s: float = 0.1, skew_s: float = 0.0, **policy: object
    ) -> MemoryWorker:
        node = await self.node(name, skew_s=skew_s)
        worker = Worker(
            node=node,
            hardware=Hardware(num_cpus=2, memory_bytes=8 << 30),
            policy=ProviderPolicy(**policy),
            config=RunConfig(name=name, data_dir=self.folder / name),
            open_trainer=lambda start, buffers: InlineTrainer.open(start, buffers, step_s=step_s),
            hour=lambda: 12.0,
        )
        self.workers[name] = MemoryWorker(node, worker, asyncio.create_task(worker.run()))
        return self.workers[name]

    async def kill(self, name: str) -> None:
        killed = self.workers.pop(name)
        await self.memory.kill(killed.node.peer_id)
        killed.task.cancel()
        await asyncio.gather(killed.task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self.workers):
            await self.kill(name)


def prepare(
    node: Node,
    *,
    tokens: int = 3840,
    min_peers: int = 3,
    kind: str = "gpt",
    nonce: int = 0,
    **training: object,
) -> PreparedJob:
    """A tiny character model, its data and parameters stored with the node."""
    store = node.exchange.store
    text = TEXT * 40
    tokenizer = make_tokenizer("char", text)
    ids = tokenizer.encode(text).astype(np.uint8)
    cut = len(ids) * 9 // 10
    model = model_spec(
        kind=kind, num_layers=1, width=16, vocab_size=tokenizer.vocab_size, embedding_dim=16
    )
    theta_P = initial_parameters(model, seed=1)
    return prepared_job(
        nonce,
        model=model,
        training=TrainingConfig(
            tokens=tokens, batch_size=4, inner_steps=5, inner_lr=1e-2, eval_tokens=256, **training
        ),
        data=data_spec(
            train_cid=put_bytes(store, ids[:cut].tobytes()),
            num_train_tokens=cut,
            heldout_cid=put_bytes(store, ids[cut:].tobytes()),
            num_heldout_tokens=len(ids) - cut,
        ),
        peers=PeersConfig(min=min_peers),
        num_parameters=theta_P.size,
        parameters_cid=put_bytes(store, theta_P.tobytes()),
        tokenizer_cid=put_bytes(store, tokenizer.to_bytes()),
    )


async def submit(node: Node, prepared: PreparedJob) -> str:
    node.exchange.store.put(encode(prepared))
    return (await node.catalog.publish(prepared)).body.job_id


async def until_final(node: Node, job_id: str, *, within_s: float = 3600.0) -> JobView:
    async with asyncio.timeout(within_s), aclosing(node.catalog.follow(job_id)) as views:
        async for view in views:
            last = view
    return last


async def certificates_of(node: Node, view: JobView) -> list[Certificate]:
    """The certified rounds, fetched from those who finished the job."""
    assert view.result is not None
    await node.exchange.fetch_file(view.result.chain_cid, view.result.holders)
    raw = read_bytes(node.exchange.store, view.result.chain_cid)
    return msgspec.msgpack.decode(raw, type=list[Certificate])


async def until_rounds(node: Node, job_id: str, num_rounds: int) -> None:
    """Wait until so many rounds are certified, as the participants say it."""
    async with asyncio.timeout(600.0), aclosing(node.catalog.follow(job_id)) as views:
        async for view in views:
            if view.num_rounds >= num_rounds:
                return
    raise AssertionError(f"the job ended as {view.phase} before round {num_rounds}")
