"""Every kind of record that stands on the record store or travels on a topic."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from zoonet.crypto import PeerId, public_key_of, sha256
from zoonet.records.envelope import Body, register

NUM_PEER_BUCKETS: Final = 8
JOBS_KEY: Final = "jobs"
PEERS_TOPIC: Final = "peers"
JOBS_TOPIC: Final = "jobs"

Text = Annotated[str, Meta(max_length=200)]
Address = Annotated[str, Meta(max_length=256)]
JobId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Cid = Annotated[str, Meta(pattern=r"^b[a-z2-7]{20,100}$")]
Natural = Annotated[int, Meta(ge=0)]
Finite = Annotated[float, Meta(ge=0, le=1e15)]  # no NaN, no infinity
UnixTime = Annotated[float, Meta(ge=0, le=253_402_300_799)]  # seconds, up to the year 9999

Role = Literal["worker", "bootstrap", "storage", "client", "verifier"]
Reachability = Literal["direct", "relayed", "private", "unknown"]
Phase = Literal["joining", "waiting", "training", "averaging", "stalled", "finished", "failed"]


def peers_key(peer_id: str) -> str:
    """Key under which a peer's record stands; the registry is spread over several keys."""
    return f"peers/{sha256(peer_id.encode())[0] % NUM_PEER_BUCKETS}"


def all_peers_keys() -> tuple[str, ...]:
    """Every key that `peers_key` can return."""
    return tuple(f"peers/{bucket}" for bucket in range(NUM_PEER_BUCKETS))


def job_key(job_id: str) -> str:
    """Key of a job's record."""
    return f"job/{job_id}"


def job_topic(job_id: str) -> str:
    """Topic of a job's live events."""
    return f"job/{job_id}"


def progress_key(job_id: str) -> str:
    """Key under which those who train a job say so: its participants and holders."""
    return f"progress/{job_id}"


def result_key(job_id: str) -> str:
    """Key under which participants publish a finished job's model."""
    return f"result/{job_id}"


def run_key(run: str) -> str:
    """Key and topic under which those who take part in a run of that name say so."""
    name = sha256(b"zoonet-run-name/1\x00", run.encode())
    return f"run/{name[:16].hex()}"


def job_id_of(submitter: PeerId, spec_cid: str) -> str:
    """A job's id follows from who submitted which spec: it cannot be taken by another."""
    return sha256(b"zoonet-job/1\x00", public_key_of(submitter), spec_cid.encode())[:16].hex()


class Hardware(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer brings. Claimed, not proven; the benchmark of a tier proves it."""

    num_cpus: Natural
    memory_bytes: Natural
    num_gpus: Natural = 0
    gpu_name: Text = ""
    gpu_memory_bytes: Natural = 0


@register
class PeerRecord(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A peer is here: where it is reached, what it does and brings."""

    KIND: ClassVar[str] = "peer/1"
    MAX_LIFETIME_S: ClassVar[float] = 600.0

    peer_id: Text
    name: Text = ""
    roles: Annotated[tuple[Role, ...], Meta(max_length=8)]
    addresses: Annotated[tuple[Address, ...], Meta(max_length=24)]
    reachability: Reachability = "unknown"
    hardware: Hardware
    tier: Text = "open"
    version: Text
    started_at: UnixTime
    jobs: Annotated[tuple[JobId, ...], Meta(max_length=16)] = ()

    def key(self) -> str:
        return peers_key(self.peer_id)

    def check_author(self, author: PeerId) -> None:
        if self.peer_id != author:
            raise ValueError("a peer record about another peer")


@register
class JobRecord(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job is open for peers to take, or has been cancelled by its submitter."""

    KIND: ClassVar[str] = "job/1"
    MAX_LIFETIME_S: ClassVar[float] = 30 * 24 * 3600.0

    job_id: JobId
    name: Text
    task: Text
    spec_cid: Cid
    num_parameters: Natural
    num_tokens: Natural
    min_peers: Natural
    max_peers: Natural
    budget_max: Natural
    submitted_at: UnixTime
    is_cancelled: bool = False

    def key(self) -> str:
        return job_key(self.job_id)

    def check_author(self, author: PeerId) -> None:
        if self.job_id != job_id_of(author, self.spec_cid):
            raise ValueError("the job's id is not that of this submitter and spec")


@register
class JobList(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs that one submitter has open: how jobs are discovered."""

    KIND: ClassVar[str] = "job-list/1"
    MAX_LIFETIME_S: ClassVar[float] = 30 * 24 * 3600.0

    job_ids: Annotated[tuple[JobId, ...], Meta(max_length=128)]

    def key(self) -> str:
        return JOBS_KEY


@register
class Progress(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A participant of a job says where it stands. Losses are nats a token; absent when 0."""

    KIND: ClassVar[str] = "progress/1"
    MAX_LIFETIME_S: ClassVar[float] = 600.0

    job_id: JobId
    name: Text = ""
    phase: Phase
    num_rounds: Natural  # certified rounds in this peer's chain
    head: Digest  # digest of the last certified round
    num_tokens: Natural  # certified tokens in this peer's chain
    num_members: Natural = 0  # of the last certified round
    num_contributors: Natural = 0  # of the last certified round
    tokens_per_s: Finite = 0.0  # this peer's own speed
    train_loss: Finite = 0.0  # this peer's own mean over the last round
    eval_loss: Finite = 0.0  # held-out loss of the outer parameters
    eval_round: Natural = 0  # number of certified rounds that eval_loss was measured after
    sent_bytes: Natural = 0
    received_bytes: Natural = 0
    note: Text = ""

    def key(self) -> str:
        return progress_key(self.job_id)


@register
class JobResult(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A participant holds the finished model. Replicas are bit-identical, so all name one CID."""

    KIND: ClassVar[str] = "result/1"
    MAX_LIFETIME_S: ClassVar[float] = 30 * 24 * 3600.0

    job_id: JobId
    model_cid: Cid  # manifest of the safetensors file
    model_bytes: Natural
    chain_cid: Cid  # manifest of the certified rounds
    head: Digest
    num_rounds: Natural
    num_tokens: Natural
    eval_loss: Finite = 0.0
    eval_losses: Annotated[tuple[tuple[Natural, Finite], ...], Meta(max_length=128)] = ()

    def key(self) -> str:
        return result_key(self.job_id)


@register
class RunRecord(Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This peer takes part in a run of training loops of that name, and holds what it needs."""

    KIND: ClassVar[str] = "run/1"
    MAX_LIFETIME_S: ClassVar[float] = 600.0

    run: Text
    spec_cid: Cid  # a block: settings, names and shapes of the parameters
    parameters_cid: Cid  # manifest of the initial flat parameter vector, little-endian fp32
    founded_at: UnixTime  # as whoever began it says
    is_begun: bool = False  # the author trains with these; else it merely offers them

    def key(self) -> str:
        return run_key(self.run)
