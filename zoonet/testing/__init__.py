"""The network's in-memory twin: a whole swarm in one deterministic test."""

from zoonet.testing.faults import FaultPlan
from zoonet.testing.loop import VirtualTimeLoop, run
from zoonet.testing.memory import MemoryRecordStore, MemorySwarm, MemoryTransport

__all__ = [
    "FaultPlan",
    "MemoryRecordStore",
    "MemorySwarm",
    "MemoryTransport",
    "VirtualTimeLoop",
    "run",
]
