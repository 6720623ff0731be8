"""One peer of the soak: what `zoonet peer` runs, with a trainer that waits where one would compute.

    python -m experiments.soak.peer --home DIR --join MULTIADDR --name NAME --period 6

Host, daemon, records, blocks, replica, rounds, averaging and lanes are the product's own. On
stdout comes a JSON line every few seconds: what only the process itself can tell.

P = flat parameters
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.soak.traced import Traced
from peers import runtime
from peers.job_run import RunConfig
from peers.keys import identity_of
from peers.node import Node
from peers.worker import Worker
from zoonet import __version__
from zoonet.blocks import BlockExchange, BlockStore
from zoonet.clock import SystemClock
from zoonet.errors import TrainingError
from zoonet.jobs import Catalog, ProviderPolicy
from zoonet.membership import Directory, probe
from zoonet.membership.gossip import Registry, RegistryRecords
from zoonet.net import Host, HostConfig
from zoonet.ranges import count, take
from zoonet.records import PeerRecord, Signed
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import Layout
from zoonet.training.handle import OnStep
from zoonet.training.messages import Evaluated, Sample, Start, StepDone, Train, Trained

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
BLOCK: Final = 1 << 16  # values that are changed at a time
STEP_SIZE: Final = 1e-3


class PacedTrainer:
    """The `Trainer` Protocol without a model: a round's work is done at the next full period.

    So all members are done at the same time, and rounds come no faster than the period. It writes
    all that a trainer writes to the shared buffers, in values that differ from peer to peer.
    """

    device = "cpu"
    layout: Layout = ()

    def __init__(self, buffers: SharedBuffers, period_s: float, seed: int) -> None:
        self.num_trained = 0
        self._buffers = buffers
        self._period_s = period_s
        self._noise_B = np.random.default_rng(seed).standard_normal(BLOCK, np.float32)
        self._stopped = asyncio.Event()

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        """Wait for the end of the period, then move all parameters a little."""
        self._stopped.clear()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._period_s - time.time() % self._period_s):
                await self._stopped.wait()
            return Trained(round=command.round, slots=(), loss=0.0, tokens=0, seconds=0.0)
        except TimeoutError:
            pass
        await asyncio.to_thread(self._write, self._buffers)
        slots, _ = take(command.slots, command.steps - command.num_carried)
        num_slots = count(slots)
        if on_step is not None:
            on_step(StepDone(steps=num_slots, of=num_slots, loss=1.0, tokens_per_s=1.0))
        self.num_trained += 1
        return Trained(
            round=command.round,
            slots=slots,
            loss=1.0,
            tokens=num_slots,
            seconds=time.monotonic() - began,
        )

    def _write(self, buffers: SharedBuffers) -> None:
        for start in range(0, buffers.local_P.size, BLOCK):
            piece = buffers.local_P[start : start + BLOCK]
            scale = np.float32(STEP_SIZE * (1 + (self.num_trained + start) % 7))
            np.add(
                buffers.global_P[start : start + BLOCK],
                self._noise_B[: piece.size] * scale,
                out=piece,
            )
        buffers.inner_N.fill(float(self.num_trained))

    async def merge(self, *, is_merged: bool) -> None:
        """There are no parameters but those in the buffers."""

    async def stop(self) -> None:
        """Return early, with nothing done."""
        self._stopped.set()

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        """There is nothing to measure."""
        return Evaluated(loss=1.0, tokens=1)

    async def sample(self, request: Sample) -> str:
        """Raises TrainingError: there is no model."""
        raise TrainingError("this trainer only waits")


class SoakPeer:
    """The parts of a peer, held together for one job."""

    def __init__(self, host: Host, options: argparse.Namespace) -> None:
        self._host = host
        self._options = options
        self._clock = SystemClock()
        self._started_at = self._clock.now()
        self._hardware = probe()
        self._jobs: tuple[str, ...] = ()
        self._trainer: PacedTrainer | None = None
        self._traced = Traced() if options.trace else None
        self._registry = Registry(
            host.identity, host.transport, self._clock, describe=self._describe, learn=host.learn
        )
        self._records = RegistryRecords(self._registry, host.records)
        self._directory = Directory(
            host.identity,
            self._records,
            self._clock,
            describe=self._describe,
            on_peer=self._meet,
            registry=self._registry,
        )

    async def run(self) -> None:
        """Run until cancelled."""
        exchange = BlockExchange(self._host.transport, BlockStore(self._options.home / "blocks"))
        await exchange.serve()
        for peer_id in await self._host.connected():
            self._registry.meet(peer_id)
        node = Node(
            identity=self._host.identity,
            clock=self._clock,
            transport=self._host.transport,
            lanes=self._host.lanes,
            records=self._records,
            exchange=exchange,
            catalog=Catalog(self._host.identity, self._records, self._clock),
        )
        worker = Worker(
            node=node,
            hardware=self._hardware,
            policy=ProviderPolicy(),
            config=RunConfig(name=self._options.name, data_dir=self._options.home / "jobs"),
            open_trainer=self._open_trainer,
            on_job=self._on_job,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._registry.run())
            tasks.create_task(self._directory.run())
            tasks.create_task(worker.run())
            tasks.create_task(self._tell())

    @asynccontextmanager
    async def _open_trainer(
        self, start: Start, buffers: SharedBuffers
    ) -> AsyncIterator[PacedTrainer]:
        seed = zlib.crc32(self._options.name.encode())
        self._trainer = PacedTrainer(buffers, self._options.period, seed)
        yield self._trainer

    async def _tell(self) -> None:
        """Print what others cannot see from outside, every few seconds."""
        while True:
            links = self._host.lanes.links().values()
            num_trained = self._trainer.num_trained if self._trainer else 0
            line: dict[str, Any] = {
                "num_tasks": len(asyncio.all_tasks()),
                "num_trained": num_trained,
                "paths": Counter(link.path for link in links),
            }
            if self._traced is not None:
                line["traced"] = self._traced.told(num_trained)
            print(json.dumps(line), flush=True)
            await asyncio.sleep(self._options.tell)

    async def _describe(self) -> PeerRecord:
        return PeerRecord(
            peer_id=self._host.peer_id,
            name=self._options.name,
            roles=("worker",),
            addresses=await self._host.addresses(),
            reachability="private",
            hardware=self._hardware,
            version=__version__,
            started_at=self._started_at,
            jobs=self._jobs,
        )

    def _on_job(self, job_ids: tuple[str, ...]) -> None:
        self._jobs = job_ids
        self._directory.beat_now()
        self._registry.renew_soon()

    def _meet(self, record: Signed[PeerRecord]) -> None:
        self._host.learn(record.author, record.body.addresses)
        if "client" not in record.body.roles:
            self._registry.meet(record.author)


async def run_peer(options: argparse.Namespace) -> None:
    """Take part until cancelled."""
    home = runtime.home(str(options.home))
    config = HostConfig(
        run_dir=home.run_dir,
        listen=(LOOPBACK,),
        bootstrap=(options.join,),
        use_shm=options.shm,
    )
    async with Host.open(identity_of(home), config) as host:
        await SoakPeer(host, options).run()


def main() -> None:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m experiments.soak.peer", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--join", required=True, help="a multiaddr")
    parser.add_argument("--name", required=True)
    parser.add_argument("--period", type=float, default=6.0, help="seconds from round to round")
    parser.add_argument("--tell", type=float, default=5.0, help="seconds between two lines")
    parser.add_argument("--trace", action="store_true", help="say which lines hold more and more")
    parser.add_argument("--shm", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    runtime.configure_logging(verbosity=0)
    runtime.run_role(run_peer(options))


if __name__ == "__main__":
    main()
