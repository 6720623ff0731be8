"""The peer: joins a swarm, says what it brings, and trains the jobs that fit."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from peers import runtime
from peers.bootstrap import by_reach, invitation
from peers.job_run import RunConfig
from peers.keys import identity_of
from peers.node import Node
from peers.worker import Worker
from zoonet import __version__
from zoonet.blocks import BlockExchange, BlockStore
from zoonet.clock import SystemClock
from zoonet.jobs import Catalog, ProviderPolicy
from zoonet.membership import (
    Directory,
    Lan,
    LanConfig,
    PeerCache,
    probe,
    tier_of,
)
from zoonet.net import Host, HostConfig
from zoonet.records import Hardware, PeerRecord, Signed, sign
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess
from zoonet.training.messages import Start

LAN_SEARCH_S: Final = 3.0
CACHE_INTERVAL_S: Final = 30.0
BEACON_LIFETIME_S: Final = 180.0
TRAINER_NICE: Final = 5  # training yields to the node, which answers others

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What `zoonet peer` was told."""

    home: Path  # state directory: key, peers met, blocks
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    name: str = ""
    client: bool = False  # behind NAT: dial only, be reached through relays
    lan: bool = True  # look for neighbours and answer theirs
    device: str = "auto"
    threads: int = 1  # of CPU arithmetic
    policy: ProviderPolicy = ProviderPolicy()


def main(options: PeerOptions) -> None:
    """Run until SIGINT or SIGTERM; both are the normal end."""
    runtime.run_role(run_peer(options))


async def run_peer(options: PeerOptions) -> None:
    """Take part in the swarm until cancelled. Raises ConfigError and TransportError."""
    home = runtime.Home(options.home)
    hardware = await asyncio.to_thread(probe)
    log.info(
        "hardware cpus=%d memory_gb=%.0f gpus=%d tier=%s",
        hardware.num_cpus, hardware.memory_bytes / 1e9, hardware.num_gpus, tier_of(hardware),
    )
    cache = PeerCache(home.path / "peers.json")
    async with _host(options, home, cache) as host, _lan(options, host) as lan:
        await _enter(host, lan)
        role = PeerRole(options, home, hardware, host, lan, cache)
        await role.run()


@asynccontextmanager
async def _host(
    options: PeerOptions, home: runtime.Home, cache: PeerCache
) -> AsyncIterator[Host]:
    config = HostConfig(
        run_dir=home.run_dir,
        announce=options.announce,
        bootstrap=options.join,
        known_peers=cache.addresses(),
        is_client=options.client,
    )
    if options.listen:
        config = replace(config, listen=options.listen)
    async with Host.open(identity_of(home), config) as host:
        yield host


@asynccontextmanager
async def _lan(options: PeerOptions, host: Host) -> AsyncIterator[Lan]:
    is_enabled = options.lan and not host.config.is_local
    async with Lan.open(host.peer_id, LanConfig(is_enabled=is_enabled)) as lan:
        yield lan


async def _enter(host: Host, lan: Lan) -> None:
    """Named and cached peers were dialled already; then the LAN; else this is a new swarm."""
    if not await host.connected():
        neighbours = await lan.search(LAN_SEARCH_S)
        addresses = [text for record in neighbours for text in record.body.addresses]
        if addresses:
            await host.connect(addresses)
    connected = await host.connected()
    if connected:
        log.info("joined peers=%d", len(connected))
        return
    if host.config.bootstrap:
        log.warning("none of the peers named with --join answers; they are tried again")
    print(invitation(by_reach(await host.addresses())), flush=True)


class PeerRole:
    """Everything that a peer runs side by side, and what it says about itself."""

    def __init__(
        self,
        options: PeerOptions,
        home: runtime.Home,
        hardware: Hardware,
        host: Host,
        lan: Lan,
        cache: PeerCache,
    ) -> None:
        self._options = options
        self._home = home
        self._hardware = hardware
        self._host = host
        self._lan = lan
        self._cache = cache
        self._clock = SystemClock()
        self._started_at = self._clock.now()
        self._jobs: tuple[str, ...] = ()
        self._name = options.name or platform.node()[:40] or "peer"
        self._directory = Directory(
            host.identity, host.records, self._clock,
            describe=self._describe, on_peer=self._meet,
        )

    async def run(self) -> None:
        """Run until cancelled."""
        exchange = BlockExchange(self._host.transport, BlockStore(self._home.path / "blocks"))
        await exchange.serve()
        node = Node(
            identity=self._host.identity,
            clock=self._clock,
            transport=self._host.transport,
            records=self._host.records,
            exchange=exchange,
            catalog=Catalog(self._host.identity, self._host.records, self._clock),
        )
        worker = Worker(
            node=node,
            hardware=self._hardware,
            policy=self._options.policy,
            config=RunConfig(
                name=self._name,
                data_dir=self._home.path / "jobs",
                device=self._options.device,
                num_threads=self._options.threads,
                gpu_share=self._options.policy.gpu_share,
            ),
            open_trainer=_open_trainer,
            on_job=self._on_job,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._directory.run())
            tasks.create_task(self._remember())
            tasks.create_task(self._present())
            tasks.create_task(worker.run())

    async def _describe(self) -> PeerRecord:
        return PeerRecord(
            peer_id=self._host.peer_id,
            name=self._name,
            roles=("worker",),
            addresses=tuple(by_reach(await self._host.addresses()))[:24],
            reachability=await self._host.reachability(),
            hardware=self._hardware,
            tier=tier_of(self._hardware),
            version=__version__,
            started_at=self._started_at,
            jobs=self._jobs,
        )

    async def _present(self) -> None:
        """Keep the beacon for neighbours fresh."""
        while True:
            now = self._clock.now()
            self._lan.present(
                sign(
                    self._host.identity,
                    await self._describe(),
                    sequence=int(now * 1000),
                    expires_at=now + BEACON_LIFETIME_S,
                )
            )
            await asyncio.sleep(BEACON_LIFETIME_S / 3)

    def _on_job(self, job_ids: tuple[str, ...]) -> None:
        self._jobs = job_ids
        self._directory.beat_now()

    def _meet(self, record: Signed[PeerRecord]) -> None:
        self._host.learn(record.author, record.body.addresses)
        self._cache.remember(
            record.author, record.body.addresses, met_at=self._clock.now()
        )

    async def _remember(self) -> None:
        """Keep the cache of peers met before on disk, so that a dead bootstrap does not matter."""
        try:
            while True:
                await asyncio.sleep(CACHE_INTERVAL_S)
                self._cache.save()
        finally:
            self._cache.save()


@asynccontextmanager
async def _open_trainer(
    start: Start, buffers: SharedBuffers
) -> AsyncIterator[TrainerProcess]:
    async with TrainerProcess.open(start, buffers, nice=TRAINER_NICE) as trainer:
        yield trainer
