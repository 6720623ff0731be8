"""Records that peers of the experiment sign."""

from __future__ import annotations

from typing import Any

from experiments.membership.world import START
from zoonet.blocks import cid_of
from zoonet.crypto import Identity
from zoonet.membership.gossip import Gone, Item, MemberRecord
from zoonet.membership.gossip.item import subject_of
from zoonet.records import Hardware, JobRecord, Signed, job_id_of, sign


def signed(identity: Identity, body: Any, sequence: int, expires_at: float) -> Item:
    """A record as it stands in a table."""
    return Item(sign(identity, body, sequence=sequence, expires_at=expires_at))


def gone(identity: Identity, record: Signed[Any], sequence: int) -> Item:
    """A peer's accusation of another, or its own goodbye."""
    body = Gone(subject=subject_of(record.author), seq=record.sequence)
    return signed(identity, body, sequence, record.expires_at)


def member(identity: Identity, number: int, *, now: float, expires_at: float) -> Item:
    """A member's record, as long as those of real peers with a GPU; `number` is any of its own."""
    peer_id = identity.peer_id
    body = MemberRecord(
        peer_id=peer_id,
        name=f"worker-{peer_id[-6:]}",
        roles=("worker",),
        addresses=(
            f"/ip4/203.0.113.{number % 250}/tcp/31330/p2p/{peer_id}",
            f"/ip4/192.168.1.{number % 250}/tcp/31330/p2p/{peer_id}",
        ),
        reachability="direct",
        hardware=Hardware(
            num_cpus=16,
            memory_bytes=64 * 10**9,
            num_gpus=1,
            gpu_name="NVIDIA GeForce RTX 4090",
            gpu_memory_bytes=24 * 10**9,
        ),
        version="0.1.0",
        started_at=START - 3600.0,
        jobs=(f"{number:032x}",),
    )
    return signed(identity, body, int(now * 1000), expires_at)


def job(identity: Identity, name: str, *, now: float, sequence: int, lifetime_s: float) -> Item:
    """A job's record; a job of another name has another specification."""
    spec_cid = cid_of(name.encode())
    body = JobRecord(
        job_id=job_id_of(identity.peer_id, spec_cid),
        name=name,
        task="causal_lm",
        spec_cid=spec_cid,
        num_parameters=124_000_000,
        num_tokens=10**10,
        min_peers=4,
        max_peers=64,
        budget_max=10**6,
        submitted_at=now,
    )
    return signed(identity, body, sequence, now + lifetime_s)
