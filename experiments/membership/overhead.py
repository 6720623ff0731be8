"""What a call costs on the wire beside its payload, and what a new connection does.

These are the two constants of the simulation. Bytes are those of the loopback interface, headers
and acknowledgements included, less what idle hosts send in the same time.
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Final

from experiments.membership.real_peer import RealPeer
from experiments.membership.rival import interface_bytes
from zoonet.crypto import PeerId
from zoonet.membership.gossip import Ask, GossipConfig
from zoonet.membership.gossip.messages import PROTOCOL, ToldWire, to_wire
from zoonet.transport import call

NUM_OTHERS: Final = 6
NUM_CALLS: Final = 100
PAUSE_S: Final = 0.1  # between two calls: none rides along with another
IDLE_S: Final = 10.0
CONNECT_S: Final = 4.0  # in which the two ends of a new connection introduce themselves


async def measure_overhead(scratch: Path) -> dict[str, float]:
    """Bytes of a call beside its payload, and of a connection; see `World`."""
    peers = [RealPeer(scratch / f"o{number}", GossipConfig()) for number in range(NUM_OTHERS + 1)]
    try:
        for peer in peers:
            await peer.start(())
            await peer.registry.serve()
        caller, *others = peers
        for other in others:
            caller.host.learn(other.peer_id, await other.host.addresses())
        idle_bytes_per_s = await _idle_rate()
        first = []
        for other in others:
            began = interface_bytes()
            await _call(caller, other.peer_id)
            await asyncio.sleep(CONNECT_S)
            first.append(interface_bytes() - began - CONNECT_S * idle_bytes_per_s)
        idle_bytes_per_s = await _idle_rate()
        began, payload_bytes = interface_bytes(), caller.payload_bytes
        for number in range(NUM_CALLS):
            await _call(caller, others[number % NUM_OTHERS].peer_id)
            await asyncio.sleep(PAUSE_S)
        length_s = NUM_CALLS * PAUSE_S
        carried_bytes = interface_bytes() - began - length_s * idle_bytes_per_s
        payload_bytes = caller.payload_bytes - payload_bytes
        return {
            "num_calls": NUM_CALLS,
            "payload_bytes": payload_bytes / NUM_CALLS,
            "call_bytes": (carried_bytes - payload_bytes) / NUM_CALLS,
            "connect_bytes": statistics.median(first) - carried_bytes / NUM_CALLS,
            "idle_bytes_per_s": idle_bytes_per_s,
        }
    finally:
        for peer in reversed(peers):
            await peer.close()


async def _idle_rate() -> float:
    before = interface_bytes()
    await asyncio.sleep(IDLE_S)
    return (interface_bytes() - before) / IDLE_S


async def _call(caller: RealPeer, other: PeerId) -> None:
    await call(
        caller.host.transport, other, PROTOCOL, to_wire(Ask()), ToldWire, timeout_s=CONNECT_S
    )
