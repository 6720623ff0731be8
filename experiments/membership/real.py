"""The same on real peers: many hosts with their daemons in one process, on loopback.

Bytes are those of the loopback interface, headers included, and of nobody else where the process
runs in a network namespace of its own (`own_network`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from experiments.membership.rival import LOOPBACK, NUM_GETS, interface_bytes
from experiments.membership.simulate import Simulation
from experiments.membership.world import World, percentile
from zoonet.blocks import cid_of
from zoonet.clock import SystemClock
from zoonet.crypto import Identity
from zoonet.errors import TransportError
from zoonet.membership.gossip import GossipConfig, Registry
from zoonet.net import Host, HostConfig
from zoonet.records import Hardware, JobRecord, PeerRecord, job_id_of, job_key, sign

MARK: Final = "ZOONET_OWN_NETWORK"
SETTLE_S: Final = 15.0
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
    stacks: list[AsyncExitStack] = []
    try:
        began = time.monotonic()
        hosts = await _start_hosts(num_peers, scratch, stacks)
        started_s = time.monotonic() - began
        before = interface_bytes()
        await asyncio.sleep(SETTLE_S)
        idle_bytes_per_s = 2 * (interface_bytes() - before) / SETTLE_S / num_peers
        async with AsyncExitStack() as gossiping:
            figures = await _gossip(hosts, settings, gossiping)
        return {
            "num_peers": num_peers,
            "start_s": started_s,
            "idle_bytes_per_s": idle_bytes_per_s,
            "our_dht_get_ms": await _dht_gets(hosts),
            **figures,
        }
    finally:
        for stack in reversed(stacks):
            # A host that cannot close well must not cost the figures of a long run.
            with contextlib.suppress(TransportError):
                await stack.aclose()


async def _start_hosts(num: int, scratch: Path, stacks: list[AsyncExitStack]) -> list[Host]:
    """One after the other, each with a stack of its own that closes it."""
    hosts: list[Host] = []
    known: tuple[str, ...] = ()
    for number in range(num):
        config = HostConfig(run_dir=scratch / str(number), listen=LOOPBACK, bootstrap=known)
        stack = AsyncExitStack()
        hosts.append(await stack.enter_async_context(Host.open(Identity.generate(), config)))
        stacks.append(stack)
        known = known or await hosts[0].addresses()
    return hosts


class _Member:
    """A host with its registry."""

    def __init__(self, host: Host, settings: GossipConfig) -> None:
        self.host = host
        self.registry = Registry(
            host.identity,
            host.transport,
            SystemClock(),
            describe=self._describe,
            learn=host.learn,
            config=settings,
        )
        self.task: asyncio.Task[None]

    async def _describe(self) -> PeerRecord:
        return PeerRecord(
            peer_id=self.host.peer_id,
            name=f"worker-{self.host.peer_id[-6:]}",
            roles=("worker",),
            addresses=await self.host.addresses(),
            reachability="private",
            hardware=Hardware(num_cpus=2, memory_bytes=64 * 10**9),
            version="0.1.0",
            started_at=SystemClock().now(),
        )

    @property
    def payload_bytes(self) -> int:
        return self.host.transport.sent_bytes + self.host.transport.received_bytes


async def _gossip(
    hosts: list[Host], settings: GossipConfig, stack: AsyncExitStack
) -> dict[str, Any]:
    members = [_Member(host, settings) for host in hosts]
    joined_s = []
    for number, member in enumerate(members):
        for contact in random.sample(members[:number], min(3, number)):
            address = await contact.host.addresses()
            member.host.learn(contact.host.peer_id, address)
            member.registry.meet(contact.host.peer_id)
        began = time.monotonic()
        member.task = asyncio.create_task(member.registry.run())
        stack.push_async_callback(_end, member.task)
        if number and await member.registry.complete(30):
            joined_s.append(time.monotonic() - began)
        elif not number:
            await asyncio.sleep(0.2)
    spread_s = await _until(members, lambda m: len(m.registry.peers()) == len(members) - 1, 300)
    await asyncio.sleep(SETTLE_S)
    figures: dict[str, Any] = {
        "join_ms_p50": 1000 * percentile(sorted(joined_s), 50),
        "join_ms_p99": 1000 * percentile(sorted(joined_s), 99),
        "all_know_all_s": spread_s,
        **await _steady(members),
        **await _jobs(members),
        "known_share": statistics.mean(
            (len(m.registry.peers()) + 1) / len(members) for m in members
        ),
    }
    figures["forgotten_s_p50"] = await _kill(members)
    return figures


async def _steady(members: list[_Member]) -> dict[str, Any]:
    """Bytes of a minute in which nothing happens."""
    length_s = STEADY_S
    before = interface_bytes()
    payload = sum(member.payload_bytes for member in members)
    await asyncio.sleep(length_s)
    num = len(members) * length_s
    return {
        "interface_bytes_per_s": 2 * (interface_bytes() - before) / num,
        "payload_bytes_per_s": (sum(m.payload_bytes for m in members) - payload) / num,
    }


async def _jobs(members: list[_Member]) -> dict[str, Any]:
    """Submit jobs at different peers; time until everyone has each, and a read of one."""
    keys = []
    for number in range(NUM_JOBS):
        member = random.choice(members)
        record = _job_of(member.host.identity, number)
        member.registry.publish(record)
        keys.append(record.key)
    waits = (_until(members, lambda m, k=key: bool(m.registry.find_here(k)), 120) for key in keys)
    to_all_s = await asyncio.gather(*waits)
    reads_ms = []
    for _ in range(NUM_GETS):
        began = time.perf_counter()
        await random.choice(members).registry.find(random.choice(keys))
        reads_ms.append(1000 * (time.perf_counter() - began))
    return {
        "job_to_all_s_p50": statistics.median(to_all_s),
        "find_ms_p50": percentile(sorted(reads_ms), 50),
        "find_ms_p99": percentile(sorted(reads_ms), 99),
    }


def _job_of(identity: Identity, number: int) -> Any:
    spec_cid = cid_of(f"spec {number}".encode())
    now = SystemClock().now()
    body = JobRecord(
        job_id=job_id_of(identity.peer_id, spec_cid),
        name=f"job {number}",
        task="causal_lm",
        spec_cid=spec_cid,
        num_parameters=124_000_000,
        num_tokens=10**10,
        min_peers=4,
        max_peers=64,
        budget_max=0,
        submitted_at=now,
    )
    return sign(identity, body, sequence=int(now * 1000), expires_at=now + 3600)


async def _kill(members: list[_Member]) -> float:
    """Silence some peers; median time until all others dropped them."""
    victims = []
    for _ in range(min(NUM_KILLED, len(members) - 4)):
        victim = members.pop()
        # Deaf and dumb, as a process that is gone: no goodbye is said.
        victim.registry.machine.leave = list  # type: ignore[method-assign]
        victim.task.cancel()
        await asyncio.wait([victim.task])
        await victim.host.transport.serve("membership", _hang_up)
        victims.append(victim.host.peer_id)
    waits = (
        _until(members, lambda m, p=peer_id: all(r.author != p for r in m.registry.peers()), 240)
        for peer_id in victims
    )
    times_s = await asyncio.gather(*waits)
    return statistics.median(times_s) if times_s else 0.0


async def _hang_up(stream: Any) -> None:
    await stream.close()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _until(members: list[_Member], is_true: Any, timeout_s: float) -> float:
    """Seconds until it is true of every member; infinite where it never is."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if all(is_true(member) for member in members):
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    return float("inf")


async def _dht_gets(hosts: list[Host]) -> dict[str, float]:
    """Latency of our own record store on the DHT, from random peers."""
    record = _job_of(hosts[0].identity, NUM_JOBS)
    await hosts[0].records.publish(record)
    times_ms = []
    for _ in range(NUM_GETS):
        host = random.choice(hosts[1:])
        began = time.perf_counter()
        await host.records.fetch(job_key(record.body.job_id), JobRecord)
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
