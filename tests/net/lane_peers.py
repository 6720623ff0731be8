"""Two peers with lanes in one process: streams in memory, everything else real."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.contracts.networks import identity_of
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation, ZoonetError
from zoonet.net.lanes import HostLanes, LanesConfig
from zoonet.testing import FaultPlan, MemorySwarm
from zoonet.testing.memory import MemoryTransport
from zoonet.transport import Lane

NEARBY = ("/ip4/127.0.0.1/tcp/4001",)
STORY_TIMEOUT_S = 120.0
SHM = LanesConfig(hosts=("127.0.0.1",))
DIRECT = LanesConfig(hosts=("127.0.0.1",), use_shm=False)
STREAMS = LanesConfig(hosts=(), use_shm=False, use_direct=False)


class Box:
    """A Sink that keeps what arrives, and lets a test wait for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self.places: dict[tuple[PeerId, bytes], bytearray] = {}
        self.messages: list[tuple[PeerId, bytes, bytes]] = []
        self.ends: list[tuple[PeerId, ZoonetError]] = []
        self.threads: set[str] = set()
        self.refuses = b""
        self.waits_for: threading.Event | None = None

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview | None:
        self.threads.add(threading.current_thread().name)
        if self.refuses and header == self.refuses:
            raise ProtocolViolation(peer_id, "a message of no use")
        if self.waits_for is not None and not self.waits_for.is_set():
            return None
        place = bytearray(num_bytes)
        with self._lock:
            self.places[peer_id, header] = place
        return memoryview(place)

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        with self._lock:
            self.messages.append((peer_id, header, bytes(self.places.pop((peer_id, header)))))
        self.notify()

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        with self._lock:
            self.ends.append((peer_id, error))
        self.notify()

    def on_end(self, lane: Lane, error: ZoonetError) -> None:
        """For a lane's sending end."""
        self.ended(lane.peer_id, error)

    def notify(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something is true that changes with what arrives."""
        while not is_true():
            await self._changed.wait()
            self._changed.clear()

    async def until_arrived(self, num_messages: int) -> dict[bytes, bytes]:
        """Wait for so many messages; return the payloads by header."""
        await self.until(lambda: len(self.messages) >= num_messages)
        return {header: payload for _, header, payload in self.messages}

    async def until_ended(self) -> ZoonetError:
        """Wait for an end and return why."""
        await self.until(lambda: bool(self.ends))
        return self.ends[0][1]


@dataclass(frozen=True, slots=True)
class LanePeer:
    """One of the two."""

    lanes: HostLanes
    transport: MemoryTransport
    inbox: Box
    outbox: Box  # ends of the lanes that it opened

    @property
    def peer_id(self) -> PeerId:
        return self.lanes.peer_id

    async def open(self, other: LanePeer, channel: str = "bulk") -> Lane:
        return await self.lanes.open(other.peer_id, channel, self.outbox.on_end)


async def routes_nearby(peer_id: PeerId) -> tuple[str, ...]:
    """Everyone is connected over loopback."""
    return NEARBY


@asynccontextmanager
async def lane_peer(swarm: MemorySwarm, name: str, config: LanesConfig) -> AsyncIterator[LanePeer]:
    """A peer that serves the channel "bulk"."""
    transport, _ = swarm.peer(identity_of(name))
    lanes = HostLanes(transport, config, routes_nearby)
    async with lanes.listening():
        peer = LanePeer(lanes, transport, Box(), Box())
        await lanes.serve("bulk", peer.inbox)
        try:
            yield peer
        finally:
            await transport.close()


@asynccontextmanager
async def lane_pair(
    left: LanesConfig, right: LanesConfig | None = None
) -> AsyncIterator[tuple[LanePeer, LanePeer]]:
    """Two peers that know each other."""
    swarm = MemorySwarm(faults=FaultPlan(latency_s=0.0))
    async with (
        lane_peer(swarm, "left", left) as one,
        lane_peer(swarm, "right", right or left) as other,
    ):
        yield one, other


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run a story in real time, with a limit."""

    async def main() -> None:
        async with asyncio.timeout(STORY_TIMEOUT_S):
            await story

    asyncio.run(main())
