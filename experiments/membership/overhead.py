"""What a call costs on the wire beside its payload, and what a new connection does.

These are the two constants of the simulation. Bytes are those of the loopback interface, headers
and acknowledgements included, less what idle hosts send in the same time. Connections are between
pairs that know nobody else: in a swarm the daemons' DHTs also introduce a newcomer to each other,
which is the DHT's cost, once, and not that of gossip.
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Final

from experiments.membership.real_peer import RealPeer
from experiments.membership.rival import interface_bytes
from zoonet.membership.gossip import Ask, GossipConfig
from zoonet.membership.gossip.messages import PROTOCOL, ToldWire, to_wire
from zoonet.transport import call

NUM_PAIRS: Final = 4
NUM_CALLS: Final = 100
PAUSE_S: Final = 0.1  # between two calls: none rides along with another
IDLE_S: Final = 10.0
CONNECT_S: Final = 4.0  # in which the two ends of a new connection introduce themselves


async def measure_overhead(scratch: Path) -> dict[str, float]:
    """Bytes of a call beside its payload, and of a connection; see `World`."""
    peers = [RealPeer(scratch / f"o{number}", GossipConfig()) for number in range(2 * NUM_PAIRS)]
    pairs = list(zip(peers[::2], peers[1::2], strict=True))
    try:
        for peer in peers:
            await peer.start(())
            await peer.registry.serve()
        first_bytes = [await _first_call(*pair) for pair in pairs]
        idle_bytes_per_s = await _idle_rate()
        began, payload_bytes = interface_bytes(), _payload_bytes(pairs)
        for number in range(NUM_CALLS):
            await _call(*pairs[number % NUM_PAIRS])
            await asyncio.sleep(PAUSE_S)
        carried_bytes = interface_bytes() - began - NUM_CALLS * PAUSE_S * idle_bytes_per_s
        payload_bytes = _payload_bytes(pairs) - payload_bytes
        return {
            "num_calls": NUM_CALLS,
            "payload_bytes": payload_bytes / NUM_CALLS,
            "call_bytes": (carried_bytes - payload_bytes) / NUM_CALLS,
            "connect_bytes": statistics.median(first_bytes) - carried_bytes / NUM_CALLS,
            "idle_bytes_per_s": idle_bytes_per_s,
        }
    finally:
        for peer in reversed(peers):
            await peer.close()


async def _first_call(caller: RealPeer, other: RealPeer) -> float:
    """All bytes of a call that needs a connection first."""
    caller.host.learn(other.peer_id, await other.host.addresses())
    idle_bytes_per_s = await _idle_rate()
    began = interface_bytes()
    await _call(caller, other)
    await asyncio.sleep(CONNECT_S)
    return interface_bytes() - began - CONNECT_S * idle_bytes_per_s


def _payload_bytes(pairs: list[tuple[RealPeer, RealPeer]]) -> int:
    return sum(caller.payload_bytes for caller, _ in pairs)


async def _idle_rate() -> float:
    before = interface_bytes()
    await asyncio.sleep(IDLE_S)
    return (interface_bytes() - before) / IDLE_S


async def _call(caller: RealPeer, other: RealPeer) -> None:
    transport, asked = caller.host.transport, to_wire(Ask())
    await call(transport, other.peer_id, PROTOCOL, asked, ToldWire, timeout_s=CONNECT_S)
