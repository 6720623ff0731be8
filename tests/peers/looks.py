"""Job and peer views with defaults, for tests of what is drawn from them."""

from __future__ import annotations

from typing import Any

from zoonet.crypto import PeerId
from zoonet.jobs import JobView, PeerView

JOB = "0" * 31 + "1"


def peer_view(peer_id: PeerId, **fields: Any) -> PeerView:
    defaults: dict[str, Any] = {
        "name": "",
        "phase": "training",
        "num_rounds": 0,
        "num_tokens": 0,
        "tokens_per_s": 0.0,
        "train_loss": 0.0,
        "sent_bytes": 0,
        "received_bytes": 0,
        "note": "",
    }
    return PeerView(peer_id=peer_id, **(defaults | fields))


def job_view(*peers: PeerView, **fields: Any) -> JobView:
    defaults: dict[str, Any] = {
        "job_id": JOB,
        "name": "a job",
        "task": "causal-lm",
        "submitter": PeerId("peer-submitter"),
        "spec_cid": "b" + "a" * 30,
        "phase": "training",
        "num_parameters": 1000,
        "num_rounds": 0,
        "num_tokens": 0,
        "total_tokens": 10_000,
        "min_peers": 1,
        "max_peers": 8,
        "budget_max": 0,
        "submitted_at": 0.0,
        "expires_at": 1e9,
        "eval_losses": (),
        "results": (),
        "note": "",
    }
    return JobView(peers=peers, **(defaults | fields))
