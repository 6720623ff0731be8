"""The peer: joins a swarm, says what it brings, and trains the jobs that fit."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from peers import runtime
from peers.bootstrap import by_reach, invitation, require_free_ports
from peers.job_run import RunConfig
from peers.keys import identity_of
from peers.node import Node
from peers.worker import Worker
from zoonet import __version__
from zoonet.blocks import BlockExchange, BlockStore
from zoonet.clock import SystemClock
from zoonet.crypto import is_peer_id
from zoonet.errors import ConfigError, StorageError, TransportError
from zoonet.jobs import Catalog, ProviderPolicy
from zoonet.membership import (
    LAN_SEARCH_S,
    Directory,
    Lan,
    LanConfig,
    PeerCache,
    probe,
    tier_of,
)
from zoonet.membership.gossip import Registry, RegistryRecords
from zoonet.net import Host, HostConfig
from zoonet.net.addresses import is_loopback, parse_believable, parse_peer_address
from zoonet.records import Hardware, PeerRecord, Signed, sign
from zoonet.training.buffers import SharedBuffers
from zoonet.training.devices import check_device
from zoonet.training.handle import TrainerProcess
from zoonet.training.messages import Start

YIELD_S: Final = 1.0  # for a neighbour that may be dialling us to come through
BACKOFF_S: Final = 5.5  # libp2p dials nobody again for 5 s after it has failed
CACHE_INTERVAL_S: Final = 30.0
BEACON_LIFETIME_S: Final = 180.0
PRESENT_INTERVAL_S: Final = 60.0  # between two looks at what the beacon says
LONELY_INTERVAL_S: Final = 10.0  # the same while nobody is connected
MAX_NAME_CHARACTERS: Final = 200  # what a record holds
TRAINER_NICE: Final = 5  # training yields to the node, which answers others

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What `zoonet peer` was told."""

    home: Path  # state directory: key, peers met, blocks
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    bulk_port: int = 0  # for tensors; 0: any free one
    join: tuple[str, ...] = ()
    name: str = ""
    client: bool = False  # behind NAT: dial only, be reached through relays
    lan: bool = True  # look for neighbours and answer theirs
    lan_config: LanConfig = field(default_factory=LanConfig)  # where they are looked for
    device: str = "auto"
    threads: int = 1  # of CPU arithmetic
    compile: bool = False  # through torch.compile, where there is a compiler
    policy: ProviderPolicy = ProviderPolicy()

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_CHARACTERS:
            raise ConfigError(
                f"--name has {len(self.name)} characters; others take at most "
                f"{MAX_NAME_CHARACTERS}: choose a shorter one"
            )
        for submitter in self.policy.submitters:
            if not is_peer_id(submitter):
                raise ConfigError(
                    f"--only-from {submitter!r} is no peer id, which looks like 16Uiu2HAm...; "
                    "its owner reads it with: zoonet key show"
                )


def main(options: PeerOptions) -> None:
    """Run until SIGINT or SIGTERM; both are the normal end."""
    runtime.run_role(run_peer(options))


async def run_peer(options: PeerOptions) -> None:
    """Take part in the swarm until cancelled. Raises ConfigError and TransportError."""
    home = runtime.Home(options.home)
    await asyncio.to_thread(check_device, options.device)
    hardware = await asyncio.to_thread(probe)
    log.info(
        "hardware cpus=%d memory_gb=%.0f gpus=%d tier=%s",
        hardware.num_cpus,
        hardware.memory_bytes / 1e9,
        hardware.num_gpus,
        tier_of(hardware),
    )
    cache = PeerCache(home.path / "peers.json")
    async with _host(options, home, cache) as host, _lan(options, host) as lan:
        role = PeerRole(options, home, hardware, host, lan, cache)
        await role.enter()
        await role.run()


@asynccontextmanager
async def _host(options: PeerOptions, home: runtime.Home, cache: PeerCache) -> AsyncIterator[Host]:
    config = HostConfig(
        run_dir=home.run_dir,
        announce=options.announce,
        bulk_port=options.bulk_port,
        bootstrap=options.join,
        known_peers=cache.addresses(),
        is_client=options.client,
    )
    if options.listen or options.client:  # a client that names no address only dials
        config = replace(config, listen=options.listen)
    require_free_ports(config.listen)
    async with Host.open(identity_of(home), config) as host:
        yield host


@asynccontextmanager
async def _lan(options: PeerOptions, host: Host) -> AsyncIterator[Lan | None]:
    # Neighbours cannot reach a peer on loopback, unless they are on loopback too.
    is_reachable = not host.config.is_local or is_loopback(f"/ip4/{options.lan_config.interface}")
    if not (options.lan and is_reachable):
        yield None
        return
    async with Lan.open(host.peer_id, options.lan_config) as lan:
        yield lan


class PeerRole:
    """Everything that a peer runs side by side, and what it says about itself."""

    def __init__(
        self,
        options: PeerOptions,
        home: runtime.Home,
        hardware: Hardware,
        host: Host,
        lan: Lan | None,  # None: neighbours are not looked for
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
        self._registry = Registry(
            host.identity,
            host.transport,
            self._clock,
            describe=self._describe,
            learn=host.learn,
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

    async def enter(self) -> None:
        """Named and cached peers were dialled already; then the LAN; else this is a new swarm."""
        if self._lan is not None and not await self._host.connected():
            self._lan.present(await self._beacon())  # neighbours answer a beacon, not silence
            await self._try_neighbours(self._lan)
        connected = await self._host.connected()
        if connected:
            log.info("joined peers=%d", len(connected))
            return
        if self._options.join:
            log.warning("none of the peers named with --join answers; they are tried again")
        print(invitation(by_reach(await self._host.addresses())), flush=True)

    async def run(self) -> None:
        """Run until cancelled."""
        exchange = BlockExchange(self._host.transport, BlockStore(self._home.path / "blocks"))
        await exchange.serve()
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
            policy=self._options.policy,
            config=RunConfig(
                name=self._name,
                data_dir=self._home.path / "jobs",
                device=self._options.device,
                num_threads=self._options.threads,
                gpu_share=self._options.policy.gpu_share,
                is_compiled=self._options.compile,
            ),
            open_trainer=_open_trainer,
            on_job=self._on_job,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._registry.run())
            tasks.create_task(self._directory.run())
            tasks.create_task(self._remember())
            if self._lan is not None:
                tasks.create_task(self._present(self._lan))
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

    async def _beacon(self) -> Signed[PeerRecord]:
        now = self._clock.now()
        return sign(
            self._host.identity,
            await self._describe(),
            sequence=int(now * 1000),
            expires_at=now + BEACON_LIFETIME_S,
        )

    async def _present(self, lan: Lan) -> None:
        """Keep the beacon for neighbours fresh; where nobody is connected, join one of them."""
        while True:
            is_alone = False
            try:
                lan.present(await self._beacon())
                is_alone = not await self._host.connected()
                if is_alone and await self._join_neighbours(lan):
                    log.info("joined a neighbour that was not there before")
            except TransportError as error:
                log.debug("beacon not renewed, next time: %s", error)
            await asyncio.sleep(LONELY_INTERVAL_S if is_alone else PRESENT_INTERVAL_S)

    async def _try_neighbours(self, lan: Lan) -> None:
        """Join one of those who are heard, rather than found a swarm beside them."""
        if not await self._join_neighbours(lan) and lan.peers():
            await asyncio.sleep(BACKOFF_S)
            await self._join_neighbours(lan)

    async def _join_neighbours(self, lan: Lan) -> bool:
        """Tell whether one of those on the local network answered.

        Two who hear and dial each other at the same moment both fail, for TCP makes that one
        connection without a listener. So whoever has the lesser id goes first.
        """
        heard = [
            record
            for record in await lan.search(LAN_SEARCH_S)
            if "client" not in record.body.roles  # it may be looking for the swarm itself
        ]
        if any(record.author < self._host.peer_id for record in heard):
            await asyncio.sleep(YIELD_S)
        found = [
            address.text
            for record in heard
            for address in parse_believable(record.body.addresses, record.author)
        ]
        return bool(await self._host.connect(found))

    def _on_job(self, job_ids: tuple[str, ...]) -> None:
        self._jobs = job_ids
        self._directory.beat_now()
        self._registry.renew_soon()

    def _meet(self, record: Signed[PeerRecord]) -> None:
        self._host.learn(record.author, record.body.addresses)
        if "client" not in record.body.roles:  # those who look around are gone tomorrow
            self._cache.remember(record.author, record.body.addresses, met_at=self._clock.now())
            self._registry.meet(record.author)

    async def _remember(self) -> None:
        """Keep the cache of peers met before on disk, so that a dead bootstrap does not matter."""
        try:
            while True:
                await self._remember_entrances()
                self._save_cache()
                await asyncio.sleep(CACHE_INTERVAL_S)
        finally:
            self._save_cache()

    async def _remember_entrances(self) -> None:
        """Note the peers named with --join that answer: a bootstrap has no record of its own."""
        try:
            connected = await self._host.connected()
        except TransportError as error:
            log.debug("connections not known: %s", error)
            return
        for peer_id in connected:
            self._registry.meet(peer_id)
        for address in map(parse_peer_address, self._options.join):
            if address.peer_id in connected:
                now = self._clock.now()
                self._cache.remember(address.peer_id, [address.text], met_at=now)

    def _save_cache(self) -> None:
        try:
            self._cache.save()
        except StorageError as error:
            log.warning("peers met today will not be remembered: %s", error)


@asynccontextmanager
async def _open_trainer(start: Start, buffers: SharedBuffers) -> AsyncIterator[TrainerProcess]:
    async with TrainerProcess.open(start, buffers, nice=TRAINER_NICE) as trainer:
        yield trainer
