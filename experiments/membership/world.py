"""What is simulated, and what is measured in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from zoonet.membership.gossip import GossipConfig

START: Final = 1_800_000_000.0  # Unix time at which every simulation begins


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is simulated."""

    num_peers: int = 1000
    num_jobs: int = 100
    warmup_s: float = 60.0
    duration_s: float = 600.0
    churn_per_h: float = 0.2  # share of peers that go in an hour; as many come
    graceful: float = 0.5  # share of those that say goodbye
    new_jobs_per_h: float = 60.0
    lookups_per_s: float = 20.0
    near_s: float = 0.005  # one-way delay between neighbours
    far_s: float = 0.05  # added for each length of the unit square between two peers
    loss: float = 0.01  # of messages, each way; a lost one costs the call
    rate_bytes_per_s: float = 2.5e6
    call_bytes: int = 1100  # of a call on the wire, besides its payload (see `overhead`)
    connect_bytes: int = 10_000  # of a new connection
    seed: int = 1
    gossip: GossipConfig = field(default_factory=GossipConfig)


@dataclass(slots=True)
class Tally:
    """What was measured after the warm-up."""

    sent_bytes: int = 0
    received_bytes: int = 0
    num_calls: int = 0
    num_failed: int = 0
    num_checks: int = 0
    found_rounds: list[int] = field(default_factory=list)  # RTTs of each lookup; -1: not found
    found_ms: list[float] = field(default_factory=list)
    joined_ms: list[float] = field(default_factory=list)
    joined_rtts: list[float] = field(default_factory=list)
    spread: dict[int, list[float]] = field(default_factory=dict)  # share of peers that know
    job_to_all_s: list[float] = field(default_factory=list)
    forgotten_s: list[float] = field(default_factory=list)  # until 99 % dropped a dead peer
    stale_shares: list[float] = field(default_factory=list)


def percentile(ordered: list[Any], percent: float) -> float:
    """The value below which so many of the ordered values lie; 0 of none."""
    if not ordered:
        return 0.0
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))])
