"""A real peer of the experiment: a host with its daemon and a registry, many to a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from zoonet.clock import SystemClock
from zoonet.crypto import Identity, PeerId
from zoonet.errors import TransportError
from zoonet.membership.gossip import GossipConfig, Registry
from zoonet.net import Host, HostConfig
from zoonet.records import Hardware, PeerRecord

LOOPBACK: Final = ("/ip4/127.0.0.1/tcp/0",)


class RealPeer:
    """Lives in tasks of its own, so that what ends one peer ends no other."""

    host: Host
    registry: Registry

    def __init__(self, run_dir: Path, settings: GossipConfig) -> None:
        self._run_dir = run_dir
        self._settings = settings
        self._is_up = asyncio.Event()
        self._is_over = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._gossip: asyncio.Task[None] | None = None

    @property
    def peer_id(self) -> PeerId:
        """Its id."""
        return self.host.peer_id

    @property
    def payload_bytes(self) -> int:
        """Bytes that it gave to its daemon and got from it."""
        return self.host.transport.sent_bytes + self.host.transport.received_bytes

    @property
    def num_known(self) -> int:
        """Members in its table, itself among them."""
        return self.registry.machine.table.num_members

    def knows(self, peer_id: PeerId) -> bool:
        """Whether its table has a member."""
        return self.registry.machine.table.member(peer_id) is not None

    async def start(self, bootstrap: tuple[str, ...]) -> None:
        """Start the host. Raises what `Host.open` raises."""
        config = HostConfig(run_dir=self._run_dir, listen=LOOPBACK, bootstrap=bootstrap)
        self._life = asyncio.create_task(self._live(config))
        up = asyncio.create_task(self._is_up.wait())
        await asyncio.wait({self._life, up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._life.done():
            await self._life

    async def _live(self, config: HostConfig) -> None:
        async with Host.open(Identity.generate(), config) as host:
            self.host = host
            self.registry = Registry(
                host.identity,
                host.transport,
                SystemClock(),
                describe=self._describe,
                learn=host.learn,
                config=self._settings,
            )
            self._is_up.set()
            await self._is_over.wait()

    async def _describe(self) -> PeerRecord:
        return PeerRecord(
            peer_id=self.peer_id,
            name=f"worker-{self.peer_id[-6:]}",
            roles=("worker",),
            addresses=await self.host.addresses(),
            reachability="private",
            hardware=Hardware(num_cpus=2, memory_bytes=64 * 10**9),
            version="0.1.0",
            started_at=SystemClock().now(),
        )

    async def gossip(self, contacts: Iterable[RealPeer]) -> None:
        """Begin to gossip, on the word of some that already do."""
        for contact in contacts:
            self.host.learn(contact.peer_id, await contact.host.addresses())
            self.registry.meet(contact.peer_id)
        self._gossip = asyncio.create_task(self.registry.run())

    async def kill(self) -> None:
        """End its daemon as the kernel ends a process: nothing that it says comes through."""
        assert self._life is not None
        mark = f"-listen=/unix{self._run_dir.absolute()}/"
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.ZombieProcess):  # another victim's
                if any(part.startswith(mark) for part in process.cmdline()):
                    process.kill()
        await asyncio.wait({self._life})
        await self.close()

    async def close(self) -> None:
        """Say goodbye, if the daemon lives, and end it. Raises what gossip died of."""
        if self._gossip is not None:
            self._gossip.cancel()
            await asyncio.wait({self._gossip})
            if not self._gossip.cancelled():
                self._gossip.result()
        self._is_over.set()
        if self._life is not None:
            await asyncio.wait({self._life})
            # That the daemon has been killed, or does not close well, costs no figures.
            if not isinstance(self._life.exception(), TransportError):
                self._life.result()
