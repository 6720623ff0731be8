"""Records that tests of jobs tell their stories with."""

from __future__ import annotations

from typing import Any

from tests.prepared import CID, prepared_job
from zoonet.config import PeersConfig, PreparedJob
from zoonet.crypto import Identity
from zoonet.records import JobResult, Progress, Signed, sign

OTHER_CID = "bafkrei" + "b" * 52
ALICE, BOB, CAROL, DAVE = (Identity(bytes([number]) * 32) for number in range(1, 5))


def prepared(nonce: int = 0, **changes: Any) -> PreparedJob:
    return prepared_job(nonce, **{"peers": PeersConfig(min=2, max=8)} | changes)


def progress(
    identity: Identity, job_id: str, *, now: float, sequence: int = 1, **said: Any
) -> Signed[Progress]:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "phase": "training",
        "num_rounds": 0,
        "head": bytes(32),
        "num_tokens": 0,
    }
    body = Progress(**fields | said)
    return sign(identity, body, sequence=sequence, expires_at=now + 60.0)


def result(
    identity: Identity, job_id: str, *, now: float, model_cid: str = CID, **said: Any
) -> Signed[JobResult]:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "model_cid": model_cid,
        "model_bytes": 10,
        "chain_cid": CID,
        "head": bytes(32),
        "num_rounds": 5,
        "num_tokens": 1000,
        "eval_loss": 1.5,
    }
    body = JobResult(**fields | said)
    return sign(identity, body, sequence=1, expires_at=now + 600.0)
