"""The two networks that a contract is run on: the in-memory twin and real daemons on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvloop

from zoonet.crypto import Identity, PeerId
from zoonet.net import Host, HostConfig
from zoonet.net.decoder import encode
from zoonet.net.protocol import key_id_of
from zoonet.net.substrate import PeerID, dht_pb2
from zoonet.records import RecordStore
from zoonet.testing import MemorySwarm, run
from zoonet.transport import Stream, Transport

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
STORY_TIMEOUT_S = 180.0
START = 1_800_000_000.0


def identity_of(name: str) -> Identity:
    """The same key for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


class ManualClock:
    """Unix time that moves when a test says so."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time


@dataclass(frozen=True, slots=True)
class Peer:
    """What a story sees of one peer."""

    identity: Identity
    transport: Transport
    records: RecordStore
    streams: list[Stream] = field(default_factory=list)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    async def open(self, other: Peer, protocol: str) -> Stream:
        """Open a stream that is closed when the story ends."""
        stream = await self.transport.open(other.peer_id, protocol)
        self.streams.append(stream)
        return stream


async def tell(story: Story, network: Network, peers: list[Peer]) -> None:
    """Run a story to its end and close what it opened."""
    try:
        await story(network, *peers)
    finally:
        for stream in [stream for peer in peers for stream in peer.streams]:
            await stream.close()


Story = Callable[..., Awaitable[None]]


class Network(Protocol):
    """Runs stories."""

    clock: ManualClock

    def run(self, story: Story, num_peers: int) -> None:
        """Run `story(network, peer, peer, …)` among that many connected peers."""
        ...

    async def kill(self, peer: Peer) -> None:
        """End a peer without a goodbye."""
        ...

    async def plant(self, victim: Peer, key: str, author: PeerId, raw: bytes, end: float) -> None:
        """As an attacker would, store bytes where the victim will meet them."""
        ...

    async def listeners(self, peer: Peer, topic: str, num: int) -> None:
        """Wait until the peer knows of that many others who listen to the topic."""
        ...


class MemoryNetwork:
    """The twin, in virtual time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.swarm: MemorySwarm

    def run(self, story: Story, num_peers: int) -> None:
        async def main() -> None:
            self.swarm = MemorySwarm(clock=self.clock)
            peers = []
            for number in range(num_peers):
                identity = identity_of(f"peer {number}")
                peers.append(Peer(identity, *self.swarm.peer(identity)))
            await tell(story, self, peers)
            for transport in list(self.swarm.transports.values()):
                await transport.close()

        run(main())

    async def kill(self, peer: Peer) -> None:
        await self.swarm.kill(peer.peer_id)

    async def plant(self, victim: Peer, key: str, author: PeerId, raw: bytes, end: float) -> None:
        self.swarm.records[key][author] = raw

    async def listeners(self, peer: Peer, topic: str, num: int) -> None:
        assert len(self.swarm.listeners[topic]) >= num


class DaemonNetwork:
    """Real hosts, all in one event loop, each with a daemon of its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hosts: dict[PeerId, Host] = {}
        self._stacks: dict[PeerId, AsyncExitStack] = {}
        self._dir = Path(tempfile.mkdtemp(prefix="zoonet-test-"))

    def run(self, story: Story, num_peers: int) -> None:
        async def main() -> None:
            async with asyncio.timeout(STORY_TIMEOUT_S):
                try:
                    peers = [await self._open(number) for number in range(num_peers)]
                    await tell(story, self, peers)
                finally:
                    for stack in reversed(self._stacks.values()):
                        await stack.aclose()

        try:
            uvloop.run(main())
        finally:
            shutil.rmtree(self._dir)

    async def _open(self, number: int) -> Peer:
        known = [address for host in self.hosts.values() for address in await host.addresses()]
        config = HostConfig(
            run_dir=self._dir / str(number), listen=LOOPBACK, bootstrap=tuple(known)
        )
        identity = identity_of(f"peer {number}")
        stack = AsyncExitStack()
        host = await stack.enter_async_context(Host.open(identity, config, self.clock))
        self._stacks[identity.peer_id] = stack
        self.hosts[identity.peer_id] = host
        return Peer(identity, host.transport, host.records)

    async def kill(self, peer: Peer) -> None:
        await self._stacks.pop(peer.peer_id).aclose()

    async def plant(self, victim: Peer, key: str, author: PeerId, raw: bytes, end: float) -> None:
        attacker = next(host for peer_id, host in self.hosts.items() if peer_id != victim.peer_id)
        await store_raw(attacker, victim.peer_id, key, encode(author), encode(raw), end)

    async def listeners(self, peer: Peer, topic: str, num: int) -> None:
        host = self.hosts[peer.peer_id]
        while len(await host.records.listeners(topic)) < num:
            await asyncio.sleep(0.02)  # the daemon knows, and tells only when asked


async def store_raw(
    attacker: Host, victim: PeerId, key: str, subkey: bytes, value: bytes, end: float
) -> list[bool]:
    """Send a DHT store request with whatever is in it; return what the victim says."""
    protocol: Any = attacker._dht._protocol
    request = dht_pb2.StoreRequest(
        keys=[key_id_of(key).to_bytes()],
        subkeys=[subkey],
        values=[value],
        expiration_time=[end],
        in_cache=[False],
        peer=protocol.node_info,
    )
    stub = protocol.get_stub(PeerID.from_base58(victim))
    response = await stub.rpc_store(request, timeout=10)
    return list(response.store_ok)
