"""The same on real peers: many hosts with their daemons in one process, on loopback.

Bytes are those of the loopback interface, headers included, and of nobody else where the process
runs in a network namespace of its own (`own_network`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from experiments.membership import makers
from experiments.membership.real_peer import RealPeer
from experiments.membership.rival import NUM_GETS, interface_bytes
from experiments.membership.simulate import Simulation
from experiments.membership.world import World, percentile
from zoonet.clock import SystemClock
from zoonet.crypto import PeerId
from zoonet.membership.gossip import GossipConfig
from zoonet.records import JobRecord, Signed, job_key

MARK: Final = "ZOONET_OWN_NETWORK"
SETTLE_S: Final = 15.0
QUIET_S: Final = 60.0  # after which nothing of the joining is news any more
STEADY_S: Final = 60.0  # as long as every peer takes to compare its table once
NUM_JOBS: Final = 5
NUM_KILLED: Final = 3


def own_network() -> bool:
    """Tell whether this process is alone in its network namespace; if it may, make it so.

    Replaces the process by one in a new namespace where that is allowed.
    """
    if os.environ.get(MARK):
        return True
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    trial = subprocess.run(("unshare", "--net", "true"), capture_output=True, check=False)
    if trial.returncode:
        return False
    os.environ[MARK] = "1"
    again = [sys.executable, "-m", "experiments.membership", *sys.argv[1:]]
    script = 'ip link set lo up && exec "$@"'
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", script, "sh", *again])
    raise AssertionError("exec does not return")


async def measure(num_peers: int, scratch: Path, *, settings: GossipConfig) -> dict[str, Any]:
    """Start so many peers, let them gossip, submit jobs, kill some; return the figures."""
    peers = [RealPeer(scratch / str(number), settings) for number in range(num_peers)]
    try:
        began = time.monotonic()
        known: tuple[str, ...] = ()
        for peer in peers:
            await peer.start(known)
            known = known or await peer.host.addresses()
        started_s = time.monotonic() - began
        await asyncio.sleep(SETTLE_S)
        idle_bytes_per_s = await _interface_rate(num_peers)
        return {
            "num_peers": num_peers,
            "start_s": started_s,
            "idle_bytes_per_s": idle_bytes_per_s,
            **await _join(peers),
            **await _steady(peers),
            **await _jobs(peers),
            "known_share": statistics.mean(peer.num_known / num_peers for peer in peers),
            "our_dht_get_ms": await _dht_gets(peers),
            "forgotten_s_p50": await _kill(peers),
            "load_1_min": os.getloadavg()[0],
        }
    finally:
        for peer in reversed(peers):
            await peer.close()


async def _interface_rate(num_peers: int) -> float:
    """Bytes a second that a peer sends and receives, of whatever kind."""
    before = interface_bytes()
    await asyncio.sleep(SETTLE_S)
    return 2 * (interface_bytes() - before) / SETTLE_S / num_peers


async def _join(peers: list[RealPeer]) -> dict[str, float]:
    """All enter one after the other, each on the word of three; wait until the news are old."""
    joined_s = []
    for number, peer in enumerate(peers):
        began = time.monotonic()
        await peer.gossip(random.sample(peers[:number], min(3, number)))
        if number and await peer.registry.complete(30):
            joined_s.append(time.monotonic() - began)
    spread_s = await _until(peers, lambda peer: peer.num_known == len(peers), 300)
    await asyncio.sleep(QUIET_S)
    return {
        "join_ms_p50": 1000 * percentile(sorted(joined_s), 50),
        "join_ms_p99": 1000 * percentile(sorted(joined_s), 99),
        "all_know_all_s": spread_s,
    }


async def _steady(peers: list[RealPeer]) -> dict[str, float]:
    """Bytes of a minute in which nothing happens."""
    before = interface_bytes()
    payload_bytes = sum(peer.payload_bytes for peer in peers)
    await asyncio.sleep(STEADY_S)
    peer_s = len(peers) * STEADY_S
    return {
        "interface_bytes_per_s": 2 * (interface_bytes() - before) / peer_s,
        "payload_bytes_per_s": (sum(p.payload_bytes for p in peers) - payload_bytes) / peer_s,
    }


async def _jobs(peers: list[RealPeer]) -> dict[str, float]:
    """Submit jobs at different peers; time until everyone has each, and a read of one."""
    keys = []
    for number in range(NUM_JOBS):
        author = random.choice(peers)
        record = _job_of(author, number)
        author.registry.publish(record)
        keys.append(record.key)
    waits = (_until(peers, partial(_has, key), 120) for key in keys)
    to_all_s = await asyncio.gather(*waits)
    reads_ms = []
    for _ in range(NUM_GETS):
        began = time.perf_counter()
        await random.choice(peers).registry.find(random.choice(keys))
        reads_ms.append(1000 * (time.perf_counter() - began))
    return {
        "job_to_all_s_p50": statistics.median(to_all_s),
        "find_ms_p50": percentile(sorted(reads_ms), 50),
        "find_ms_p99": percentile(sorted(reads_ms), 99),
    }


def _has(key: str, peer: RealPeer) -> bool:
    return bool(peer.registry.find_here(key))


def _has_dropped(victim: PeerId, peer: RealPeer) -> bool:
    return not peer.knows(victim)


def _job_of(author: RealPeer, number: int) -> Signed[JobRecord]:
    now = SystemClock().now()
    identity, sequence = author.host.identity, int(now * 1000)
    item = makers.job(identity, f"job {number}", now=now, sequence=sequence, lifetime_s=3600.0)
    return item.record


async def _kill(peers: list[RealPeer]) -> float:
    """Kill some peers; median time until all others dropped them."""
    victims = [peers.pop() for _ in range(min(NUM_KILLED, len(peers) - 4))]
    await asyncio.gather(*(victim.kill() for victim in victims))
    waits = (_until(peers, partial(_has_dropped, victim.peer_id), 240) for victim in victims)
    times_s = await asyncio.gather(*waits)
    return statistics.median(times_s) if times_s else 0.0


async def _until(
    peers: list[RealPeer], is_true: Callable[[RealPeer], bool], timeout_s: float
) -> float:
    """Seconds until it is true of every peer; infinite where it never is."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if all(is_true(peer) for peer in peers):
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    return float("inf")


async def _dht_gets(peers: list[RealPeer]) -> dict[str, float]:
    """Latency of our own record store on the DHT, from random peers."""
    record = _job_of(peers[0], NUM_JOBS)
    await peers[0].host.records.publish(record)
    times_ms = []
    for _ in range(NUM_GETS):
        records = random.choice(peers[1:]).host.records
        began = time.perf_counter()
        await records.fetch(job_key(record.body.job_id), JobRecord)
        times_ms.append(1000 * (time.perf_counter() - began))
    return {
        "p50": percentile(sorted(times_ms), 50),
        "p99": percentile(sorted(times_ms), 99),
    }


def measure_hivemind(num_peers: int) -> dict[str, Any]:
    """hivemind's own DHT, in a process of its own: our host puts a stricter decoder into it."""
    command = (sys.executable, "-m", "experiments.membership.rival", str(num_peers))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the rival failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def twin_of(num_peers: int, settings: GossipConfig) -> dict[str, Any]:
    """The simulation of `measure`: no delays, no loss, payload only."""
    common: dict[str, Any] = {
        "num_peers": num_peers,
        "num_jobs": 0,
        "near_s": 0.001,
        "far_s": 0.0,
        "loss": 0.0,
        "call_bytes": 0,
        "connect_bytes": 0,
        "warmup_s": STEADY_S,
        "lookups_per_s": 0.1,
        # A daemon that is gone refuses at once.
        "gossip": replace(settings, call_timeout_s=0.05),
    }
    quiet = World(duration_s=2 * STEADY_S, churn_per_h=0.0, new_jobs_per_h=0.0, **common)
    lively = World(duration_s=10 * STEADY_S, churn_per_h=60 / num_peers, graceful=0.0, **common)
    steady, events = Simulation(quiet).run(), Simulation(lively).run()
    return {
        "num_peers": num_peers,
        "payload_bytes_per_s": steady["bytes_per_s_p50"],
        "job_to_all_s_p50": events["job_to_all_s_p50"],
        "forgotten_s_p50": events["forgotten_s_p50"],
    }
