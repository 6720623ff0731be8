"""One honest body of every kind of record."""

from __future__ import annotations

import hashlib
from typing import Any

import zoonet.averaging  # noqa: F401  registers the records of rounds
from zoonet.averaging.messages import Lease, Round
from zoonet.crypto import Identity
from zoonet.membership.gossip import Gone, MemberRecord
from zoonet.membership.gossip.item import subject_of
from zoonet.records import (
    Hardware,
    JobList,
    JobRecord,
    JobResult,
    PeerRecord,
    Progress,
    RunRecord,
    Signed,
    job_id_of,
    sign,
)
from zoonet.records.envelope import Body

NOW = 1_800_000_000.0
CID = "b" + "a" * 58


def identity_of(name: str) -> Identity:
    """The same key for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


ADA, BOB = identity_of("ada"), identity_of("bob")
JOB_ID = job_id_of(ADA.peer_id, CID)

HONEST: dict[str, Body] = {
    body.KIND: body
    for body in (
        PeerRecord(
            peer_id=ADA.peer_id,
            name="Adas Rechner",
            roles=("worker", "storage"),
            addresses=("/ip4/192.0.2.7/tcp/4001",),
            hardware=Hardware(num_cpus=2, memory_bytes=8 << 30),
            version="0.1",
            started_at=NOW - 5,
        ),
        MemberRecord(
            peer_id=ADA.peer_id,
            name="Adas Rechner",
            roles=("worker",),
            addresses=("/ip4/192.0.2.7/tcp/4001",),
            hardware=Hardware(num_cpus=2, memory_bytes=8 << 30),
            version="0.1",
            started_at=NOW - 5,
        ),
        Gone(subject=subject_of(ADA.peer_id), seq=4),
        JobRecord(
            job_id=JOB_ID,
            name="tiny",
            task="causal-lm",
            spec_cid=CID,
            num_parameters=100,
            num_tokens=1000,
            min_peers=1,
            max_peers=4,
            budget_max=0,
            submitted_at=NOW,
        ),
        JobList(job_ids=(JOB_ID,)),
        Progress(
            job_id=JOB_ID,
            phase="training",
            num_rounds=3,
            head=bytes(32),
            num_tokens=12,
            train_loss=1.5,
        ),
        JobResult(
            job_id=JOB_ID,
            model_cid=CID,
            model_bytes=400,
            chain_cid=CID,
            head=bytes(32),
            num_rounds=3,
            num_tokens=1000,
            eval_loss=2.0,
        ),
        RunRecord(run="squares", spec_cid=CID, parameters_cid=CID, founded_at=NOW - 5),
        Round(
            job_id=JOB_ID,
            index=2,
            view=0,
            parent=bytes(32),
            leases=(Lease(ADA.peer_id, ((0, 5),), 5), Lease(BOB.peer_id, ((5, 10),), 3)),
        ),
    )
}


def signed(body: Any, *, author: Identity = ADA, sequence: int = 1, after_s: float = 60) -> Signed:
    """A record that ends `after_s` after NOW."""
    return sign(author, body, sequence=sequence, expires_at=NOW + after_s)
