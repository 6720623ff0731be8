"""Peers of one process that form a group: over memory in virtual time, or over real lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from tests.contracts.networks import identity_of
from tests.net.lane_peers import DIRECT, SHM, lane_peer
from zoonet.crypto import PeerId
from zoonet.distributed import Exchange, ExchangeConfig, Group
from zoonet.net.lanes import LanesConfig
from zoonet.testing import FaultPlan, MemorySwarm, run
from zoonet.transport import Lanes, StreamLanes

T = TypeVar("T")
STRIPED = replace(DIRECT, long_rtt_s=0.0)  # as far away: messages overtake each other
Story = Callable[[Group], Awaitable[T]]
QUICK = ExchangeConfig(run="test", join_timeout_s=20.0, operation_timeout_s=30.0)


class World(Protocol):
    """Runs a story at every rank of a group."""

    def run(self, num_peers: int, story: Story[T]) -> list[T]:
        """Return what the story returned at each rank."""
        ...


def names(num_peers: int) -> list[str]:
    return [f"rank {rank}" for rank in range(num_peers)]


def peer_ids(num_peers: int) -> list[PeerId]:
    return [identity_of(name).peer_id for name in names(num_peers)]


async def tell(lanes: Sequence[Lanes], story: Story[T], config: ExchangeConfig) -> list[T]:
    """Let peers with these lanes meet and go through the story."""

    async def one(own: Lanes) -> T:
        peers = [each.peer_id for each in lanes]
        async with Exchange.open(own, peers, config) as exchange:
            group = Group(exchange, "all", exchange.peers)
            try:
                return await story(group)
            finally:
                group.close()

    return list(await asyncio.gather(*map(one, lanes)))


class MemoryWorld:
    """Streams in memory, virtual time."""

    def __init__(self, config: ExchangeConfig = QUICK, faults: FaultPlan | None = None) -> None:
        self.config = config
        self.faults = faults or FaultPlan(latency_s=0.001)
        self.swarm: MemorySwarm

    def run(self, num_peers: int, story: Story[T]) -> list[T]:
        async def main() -> list[T]:
            self.swarm = MemorySwarm(faults=self.faults)
            transports = [self.swarm.peer(identity_of(name))[0] for name in names(num_peers)]
            try:
                return await tell([StreamLanes(one) for one in transports], story, self.config)
            finally:
                for transport in transports:
                    await transport.close()

        return run(main())


class LanesWorld:
    """Real lanes between peers of one process, in real time."""

    def __init__(self, lanes: LanesConfig) -> None:
        self.lanes = lanes

    def run(self, num_peers: int, story: Story[T]) -> list[T]:
        async def main() -> list[T]:
            async with AsyncExitStack() as stack, asyncio.timeout(60):
                swarm = MemorySwarm(faults=FaultPlan(latency_s=0.0))
                peers: list[Any] = [
                    await stack.enter_async_context(lane_peer(swarm, name, self.lanes))
                    for name in names(num_peers)
                ]
                return await tell([peer.lanes for peer in peers], story, QUICK)

        return asyncio.run(main())


WORLDS: dict[str, Callable[[], World]] = {
    "memory": MemoryWorld,
    "tls": lambda: LanesWorld(DIRECT),
    "striped": lambda: LanesWorld(STRIPED),
    "shm": lambda: LanesWorld(SHM),
}
