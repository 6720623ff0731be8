"""One picture of a job, folded from the signed records of its submitter and participants. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zoonet.crypto import PeerId, short
from zoonet.jobs.lifecycle import (
    FINAL_PHASES,
    Cancelled,
    Event,
    Expired,
    Failed,
    Finished,
    JobPhase,
    JobState,
    Progressed,
    Taken,
    advance,
)
from zoonet.records import JobRecord, JobResult, Progress, Signed

Losses = tuple[tuple[int, float], ...]  # (certified rounds, held-out nats a token), by round


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """Where one participant stands, in its own words."""

    peer_id: PeerId
    name: str
    phase: str
    num_rounds: int
    num_tokens: int
    tokens_per_s: float
    train_loss: float
    sent_bytes: int
    received_bytes: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultView:
    """A model that participants published, and who holds it."""

    model_cid: str
    model_bytes: int
    chain_cid: str
    num_rounds: int
    num_tokens: int
    eval_loss: float
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """Where a job stands, as far as this peer can see."""

    job_id: str
    name: str
    task: str
    submitter: PeerId
    spec_cid: str
    phase: JobPhase
    num_parameters: int
    num_rounds: int  # certified
    num_tokens: int  # certified
    total_tokens: int
    min_peers: int
    max_peers: int
    budget_max: int
    submitted_at: float
    expires_at: float
    peers: tuple[PeerView, ...]
    eval_losses: Losses
    results: tuple[ResultView, ...]  # the one that most participants name first
    note: str

    @property
    def is_final(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.phase in FINAL_PHASES

    @property
    def result(self) -> ResultView | None:
        """The model that most participants name."""
        return self.results[0] if self.results else None

    @property
    def eval_loss(self) -> float:
        """The newest held-out loss, nats a token; 0.0 before the first."""
        return self.eval_losses[-1][1] if self.eval_losses else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of all participants together."""
        return sum(peer.tokens_per_s for peer in self.peers)


class JobRecords:
    """The newest records of one job, each participant's own. Pure; `view` folds them."""

    def __init__(self, job: Signed[JobRecord]) -> None:
        self.job = job
        self._progress: dict[PeerId, Signed[Progress]] = {}
        self._results: dict[PeerId, Signed[JobResult]] = {}
        self._losses: Losses = ()

    def take(self, record: Signed[Any]) -> None:
        """Add a record where it is of this job and newer than what is known."""
        body = record.body
        if getattr(body, "job_id", "") != self.job.body.job_id:
            return
        if isinstance(body, JobRecord) and record.is_newer_than(self.job):
            self.job = record
        if isinstance(body, Progress):
            _keep_newer(self._progress, record)
        if isinstance(body, JobResult):
            _keep_newer(self._results, record)

    def merge(self, other: JobRecords) -> None:
        """Add every record of the other."""
        everything: tuple[Signed[Any], ...] = (
            other.job,
            *other._progress.values(),
            *other._results.values(),
        )
        for record in everything:
            self.take(record)

    def view(self, now: float) -> JobView:
        """Fold what has not expired; losses once seen are kept. `now` is Unix time."""
        progress = [record for record in self._progress.values() if record.expires_at > now]
        view = fold(
            self.job, progress, list(self._results.values()), now=now, earlier_losses=self._losses
        )
        self._losses = view.eval_losses
        return view


def _keep_newer(newest: dict[PeerId, Signed[Any]], record: Signed[Any]) -> None:
    known = newest.get(record.author)
    if known is None or record.is_newer_than(known):
        newest[record.author] = record


def fold(
    job: Signed[JobRecord],
    progress: Sequence[Signed[Progress]],
    results: Sequence[Signed[JobResult]],
    *,
    now: float,
    earlier_losses: Losses = (),
) -> JobView:
    """Fold the records of one job. `earlier_losses` are kept where nothing newer replaces them."""
    progress = sorted(progress, key=lambda record: record.author)
    ranked = rank(results)
    state = JobState()
    for event in _events(job, progress, ranked[0] if ranked else None, now):
        state = advance(state, event)
    spec = job.body
    return JobView(
        job_id=spec.job_id,
        name=spec.name,
        task=spec.task,
        submitter=job.author,
        spec_cid=spec.spec_cid,
        phase=state.phase,
        num_parameters=spec.num_parameters,
        num_rounds=state.num_rounds,
        num_tokens=state.num_tokens,
        total_tokens=spec.num_tokens,
        min_peers=spec.min_peers,
        max_peers=spec.max_peers,
        budget_max=spec.budget_max,
        submitted_at=spec.submitted_at,
        expires_at=job.expires_at,
        peers=tuple(_peer_view(record) for record in progress),
        eval_losses=_losses(earlier_losses, progress, results),
        results=ranked,
        note=state.note or _trouble(state, spec, progress),
    )


def _events(
    job: Signed[JobRecord],
    progress: Sequence[Signed[Progress]],
    result: ResultView | None,
    now: float,
) -> Iterable[Event]:
    """The records as events, in the order in which they must have happened."""
    for record in progress:
        yield Taken(record.author)
        yield Progressed(record.body.num_rounds, record.body.num_tokens)
    if result is not None:
        for holder in result.holders:
            yield Taken(holder)
        yield Progressed(result.num_rounds, result.num_tokens)
        yield Finished(result.model_cid)
    elif job.body.is_cancelled:
        yield Cancelled()
    elif job.expires_at <= now:
        yield Expired()
    elif progress and len(_given_up(progress)) == len(progress) >= job.body.min_peers:
        yield Failed(_given_up(progress)[0])


def _given_up(progress: Sequence[Signed[Progress]]) -> list[str]:
    """The words of those who cannot go on; they may try again once their record expires."""
    return [
        f"{short(record.author)} gave up: {record.body.note or 'for no reason given'}"
        for record in progress
        if record.body.phase == "failed"
    ]


def _trouble(state: JobState, spec: JobRecord, progress: Sequence[Signed[Progress]]) -> str:
    """Why it does not go on, where it does not."""
    if state.is_final:
        return ""
    if state.phase == "open":
        return "no peer has taken it yet; start one with: zoonet peer"
    num_working = len(progress) - len(_given_up(progress))
    if state.phase == "training" and num_working < spec.min_peers and not state.num_rounds:
        return f"{num_working} of the {spec.min_peers} peers it needs are there"
    return next(iter(_given_up(progress)), "")


def rank(results: Sequence[Signed[JobResult]]) -> tuple[ResultView, ...]:
    """The named models: more participants first, then more tokens, then the lower CIDs."""
    # Not by chain_cid: the peers' files of one chain differ in which votes each saw first.
    named: dict[tuple[str, bytes], dict[PeerId, JobResult]] = defaultdict(dict)
    for record in results:
        named[record.body.model_cid, record.body.head][record.author] = record.body
    found = []
    for (model_cid, _), by_peer in sorted(named.items()):
        first = by_peer[min(by_peer)]
        found.append(
            ResultView(
                model_cid=model_cid,
                model_bytes=first.model_bytes,
                chain_cid=first.chain_cid,
                num_rounds=first.num_rounds,
                num_tokens=first.num_tokens,
                eval_loss=first.eval_loss,
                holders=tuple(sorted(by_peer)),
            )
        )
    return tuple(sorted(found, key=lambda result: (-len(result.holders), -result.num_tokens)))


def _peer_view(record: Signed[Progress]) -> PeerView:
    said = record.body
    return PeerView(
        peer_id=record.author,
        name=said.name,
        phase=said.phase,
        num_rounds=said.num_rounds,
        num_tokens=said.num_tokens,
        tokens_per_s=said.tokens_per_s,
        train_loss=said.train_loss,
        sent_bytes=said.sent_bytes,
        received_bytes=said.received_bytes,
        note=said.note,
    )


def _losses(
    earlier: Losses,
    progress: Sequence[Signed[Progress]],
    results: Sequence[Signed[JobResult]],
) -> Losses:
    """Held-out losses by round. Replicas are identical: what most peers say of a round counts."""
    said: dict[int, Counter[float]] = defaultdict(Counter)
    for record in progress:
        said[record.body.eval_round][record.body.eval_loss] += 1
    for ended in results:
        for num_rounds, loss in ended.body.eval_losses:
            said[num_rounds][loss] += 1
        said[ended.body.num_rounds][ended.body.eval_loss] += 1
    losses = dict(earlier)
    for num_rounds, counts in said.items():
        loss, _ = min(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        if loss:
            losses[num_rounds] = loss
    return tuple(sorted(losses.items()))
