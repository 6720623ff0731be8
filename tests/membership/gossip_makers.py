"""Records and machines for the tests of gossip."""

from __future__ import annotations

from typing import Any

from tests.contracts.networks import START, identity_of
from zoonet.blocks import cid_of
from zoonet.crypto import Identity, PeerId
from zoonet.membership.gossip import Gone, GossipConfig, Item, Machine, MemberRecord, Table
from zoonet.membership.gossip.item import subject_of
from zoonet.records import Hardware, JobRecord, Signed, job_id_of, sign

HOUR_S = 3600.0


def member_record(
    identity: Identity, *, sequence: int = 1, expires_at: float = START + HOUR_S, name: str = ""
) -> Signed[Any]:
    body = MemberRecord(
        peer_id=identity.peer_id,
        name=name,
        roles=("worker",),
        addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{identity.peer_id}",),
        hardware=Hardware(num_cpus=1, memory_bytes=1),
        version="0",
        started_at=START,
    )
    return sign(identity, body, sequence=sequence, expires_at=expires_at)


def member(identity: Identity, **options: Any) -> Item:
    return Item(member_record(identity, **options))


def gone(author: Identity, accused: PeerId, *, seq: int = 1, sequence: int = 1) -> Item:
    body = Gone(subject=subject_of(accused), seq=seq)
    return Item(sign(author, body, sequence=sequence, expires_at=START + HOUR_S))


def job_record(
    identity: Identity, number: int = 0, *, sequence: int = 1, is_cancelled: bool = False
) -> Signed[Any]:
    spec_cid = cid_of(f"spec {number}".encode())
    body = JobRecord(
        job_id=job_id_of(identity.peer_id, spec_cid),
        name="job",
        task="causal_lm",
        spec_cid=spec_cid,
        num_parameters=1,
        num_tokens=1,
        min_peers=1,
        max_peers=2,
        budget_max=0,
        submitted_at=START,
        is_cancelled=is_cancelled,
    )
    return sign(identity, body, sequence=sequence, expires_at=START + HOUR_S)


def job(identity: Identity, number: int = 0, **options: Any) -> Item:
    return Item(job_record(identity, number, **options))


def people(num: int) -> list[Identity]:
    return [identity_of(f"person {number}") for number in range(num)]


def table_of(owner: Identity, config: GossipConfig | None = None) -> Table:
    return Table(owner.peer_id, config or GossipConfig(), seed=1)


def machine_of(owner: Identity, config: GossipConfig | None = None, *, seed: int = 1) -> Machine:
    """A machine that holds its own record."""
    machine = Machine(owner.peer_id, config or GossipConfig(), seed=seed)
    machine.publish(member(owner), START)
    return machine
