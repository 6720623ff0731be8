"""Jobs on the record store: publishing, finding, following and cancelling them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, Self, TypeVar

from zoonet.blocks import cid_of
from zoonet.clock import Clock
from zoonet.config import PreparedJob, encode
from zoonet.crypto import Identity, PeerId
from zoonet.errors import ConfigError, TransportError
from zoonet.jobs.lifecycle import Cancelled, JobState, advance
from zoonet.jobs.view import JobRecords, JobView
from zoonet.records import (
    JOBS_KEY,
    JOBS_TOPIC,
    JobList,
    JobRecord,
    JobResult,
    Progress,
    RecordStore,
    Signed,
    job_id_of,
    job_key,
    job_topic,
    progress_key,
    result_key,
    sign,
)

JOB_LIFETIME_S: Final = 7 * 24 * 3600.0
FOLLOW_INTERVAL_S: Final = 5.0
MAX_LISTED_JOBS: Final = 128  # by one submitter
MAX_DISCOVERED_JOBS: Final = 2048
_PARALLEL_FETCHES: Final = 16

T = TypeVar("T")

log = logging.getLogger(__name__)


class Catalog:
    """The jobs of the network as one peer sees and changes them."""

    def __init__(self, identity: Identity, records: RecordStore, clock: Clock) -> None:
        self._identity = identity
        self._records = records
        self._clock = clock
        self._sequence = 0
        self._seen: dict[str, Signed[JobRecord]] = {}
        self._lists: dict[PeerId, Signed[JobList]] = {}

    async def publish(
        self, job: PreparedJob, *, budget_max: float = 0, lifetime_s: float = JOB_LIFETIME_S
    ) -> Signed[JobRecord]:
        """Open a job for everyone. Its record names the spec's CID, so store that block first.

        Raises ConfigError where this submitter has too many open jobs, TransportError where no
        peer could be reached.
        """
        spec_cid = cid_of(encode(job))
        body = JobRecord(
            job_id=job_id_of(self._identity.peer_id, spec_cid),
            name=job.name,
            task=job.training.task,
            spec_cid=spec_cid,
            num_parameters=job.num_parameters,
            num_tokens=job.training.tokens,
            min_peers=job.peers.min,
            max_peers=job.peers.max,
            budget_max=int(budget_max),
            submitted_at=self._clock.now(),
        )
        record = self._sign(body, self._clock.now() + lifetime_s)
        await self._put(record)
        log.info("submitted job=%s name=%s", body.job_id, body.name)
        return record

    async def cancel(self, job_id: str) -> Signed[JobRecord]:
        """Withdraw an own job. Raises ConfigError where it is another's, unknown or has ended."""
        record = await self.record(job_id)
        if record.author != self._identity.peer_id:
            raise ConfigError(
                f"job {job_id} was submitted by {record.author}: only its key can cancel it"
            )
        view = await self.view(job_id)
        advance(JobState(phase=view.phase), Cancelled())
        fields = {name: getattr(record.body, name) for name in record.body.__struct_fields__}
        cancelled = self._sign(JobRecord(**fields | {"is_cancelled": True}), record.expires_at)
        await self._put(cancelled)
        log.info("cancelled job=%s", job_id)
        return cancelled

    def _sign(self, body: Any, expires_at: float) -> Signed[Any]:
        """Sign with a sequence number above all earlier ones, across restarts, too."""
        self._sequence = max(self._sequence + 1, int(self._clock.now() * 1000))
        return sign(self._identity, body, sequence=self._sequence, expires_at=expires_at)

    async def _put(self, record: Signed[JobRecord]) -> None:
        listing = await self._listing(record)
        self._seen[record.body.job_id] = record
        self._lists[record.author] = listing
        await self._records.publish(record)
        await self._records.publish(listing)
        for topic in (JOBS_TOPIC, job_topic(record.body.job_id)):
            await self._records.announce(topic, record)

    async def _listing(self, record: Signed[JobRecord]) -> Signed[JobList]:
        """This submitter's list of open jobs, with or without the one that changed."""
        own = [
            seen
            for seen in self._seen.values()
            if seen.author == self._identity.peer_id and self._is_open(seen)
        ]
        job_ids = [seen.body.job_id for seen in own]
        for listed in await self._records.fetch(JOBS_KEY, JobList):
            if listed.author == self._identity.peer_id:
                job_ids.extend(listed.body.job_ids)
        job_ids = [job_id for job_id in dict.fromkeys(job_ids) if job_id != record.body.job_id]
        if self._is_open(record):
            if len(job_ids) >= MAX_LISTED_JOBS:
                job_ids = await self._still_open(job_ids)
            job_ids.append(record.body.job_id)
        expires_at = max(record.expires_at, *(seen.expires_at for seen in own), 0.0)
        return self._sign(JobList(job_ids=tuple(job_ids)), expires_at)

    async def _still_open(self, job_ids: Iterable[str]) -> list[str]:
        views = await self._gather(self._view_or_none, job_ids)
        job_ids = [view.job_id for view in views if not view.is_final]
        if len(job_ids) >= MAX_LISTED_JOBS:
            raise ConfigError(
                f"this key has {len(job_ids)} open jobs, the most there may be; "
                "cancel one with: zoonet cancel JOB"
            )
        return job_ids

    def _is_open(self, record: Signed[JobRecord]) -> bool:
        return not record.body.is_cancelled and record.expires_at > self._clock.now()

    async def refresh(self, job_ids: Iterable[str]) -> None:
        """Publish again the records of jobs, anyone's, for they leave with the peers that keep
        them: what this peer trains or has submitted stays findable while it is there.

        Raises TransportError where no peer could be reached.
        """
        for job_id in job_ids:
            record = self._seen.get(job_id)
            if record is None or not self._is_open(record):
                continue
            await self._records.publish(record)
            listing = self._lists.get(record.author)
            if listing is not None and listing.expires_at > self._clock.now():
                await self._records.publish(listing)

    async def record(self, job_id: str) -> Signed[JobRecord]:
        """Return a job's record, cancelled or not. Raises ConfigError where there is none."""
        found = [
            record
            for record in await self._records.fetch(job_key(job_id), JobRecord)
            if record.body.job_id == job_id
        ]
        if not found:
            raise ConfigError(f"no job {job_id} was found; list the open ones with: zoonet jobs")
        # The id is a digest of submitter and spec, so all of them have one author.
        newest = max(found, key=lambda record: record.sequence)
        known = self._seen.get(job_id)
        if known is not None and known.is_newer_than(newest):
            return known
        self._remember(newest)
        return newest

    def _remember(self, record: Signed[JobRecord]) -> None:
        self._seen[record.body.job_id] = record
        if len(self._seen) > MAX_DISCOVERED_JOBS:
            first = min(self._seen.values(), key=lambda seen: seen.expires_at)
            del self._seen[first.body.job_id]

    async def discover(self) -> list[Signed[JobRecord]]:
        """Return the jobs that are neither cancelled nor expired, the oldest first.

        Finished ones are among them: only `view` looks for results.
        """
        job_ids: dict[str, None] = {}
        for listing in await self._records.fetch(JOBS_KEY, JobList):
            self._lists[listing.author] = listing
            job_ids.update(dict.fromkeys(listing.body.job_ids))
        found = await self._gather(self._record_or_none, list(job_ids)[:MAX_DISCOVERED_JOBS])
        records = [record for record in found if self._is_open(record)]
        return sorted(records, key=lambda record: (record.body.submitted_at, record.body.job_id))

    async def view(self, job_id: str) -> JobView:
        """Return where a job stands. Raises ConfigError where there is none."""
        records = await self._read(await self.record(job_id))
        return records.view(self._clock.now())

    async def views(self) -> list[JobView]:
        """Return where every discovered job stands, the oldest first."""
        records = {record.body.job_id: record for record in await self.discover()}
        return await self._gather(self._view_or_none, records)

    async def _read(self, job: Signed[JobRecord]) -> JobRecords:
        """Everything that stands on the record store about a job."""
        records = JobRecords(job)
        job_id = job.body.job_id
        for progress in await self._records.fetch(progress_key(job_id), Progress):
            records.take(progress)
        for result in await self._records.fetch(result_key(job_id), JobResult):
            records.take(result)
        return records

    async def _record_or_none(self, job_id: str) -> Signed[JobRecord] | None:
        try:
            return await self.record(job_id)
        except (ConfigError, TransportError) as error:
            log.debug("listed job not found job=%s: %s", job_id, error)
            return None

    async def _view_or_none(self, job_id: str) -> JobView | None:
        try:
            return await self.view(job_id)
        except (ConfigError, TransportError) as error:
            log.debug("listed job not readable job=%s: %s", job_id, error)
            return None

    async def _gather(
        self, fetch: Callable[[str], Awaitable[T | None]], job_ids: Iterable[str]
    ) -> list[T]:
        slots = asyncio.Semaphore(_PARALLEL_FETCHES)

        async def limited(job_id: str) -> T | None:
            async with slots:
                return await fetch(job_id)

        async with asyncio.TaskGroup() as tasks:
            pending = [tasks.create_task(limited(job_id)) for job_id in job_ids]
        return [found for task in pending if (found := task.result()) is not None]

    async def follow(
        self, job_id: str, *, interval_s: float = FOLLOW_INTERVAL_S
    ) -> AsyncGenerator[JobView, None]:
        """Yield the job's view, and again whenever it changes; the last one is final.

        Participants are heard as they speak; the record store is read every `interval_s` seconds.
        Raises ConfigError where there is no such job; failures of the network in between are
        waited out. Close the generator when you leave it early.
        """
        loop = asyncio.get_running_loop()
        records = JobRecords(await self.record(job_id))
        last: JobView | None = None
        read_at = loop.time()
        async with self._records.listen(job_topic(job_id)) as events, _Ear(events) as ear:
            while last is None or not last.is_final:
                if loop.time() >= read_at:
                    await self._update(records)
                    read_at = loop.time() + interval_s
                view = records.view(self._clock.now())
                if view != last:
                    yield view
                last = view
                if not view.is_final and (said := await ear.hear(read_at - loop.time())):
                    records.take(said)

    async def _update(self, records: JobRecords) -> None:
        try:
            records.merge(await self._read(await self.record(records.job.body.job_id)))
        except (ConfigError, TransportError) as error:
            log.info("job not readable for now job=%s: %s", records.job.body.job_id, error)


class _Ear:
    """Reads a topic with a time limit, without losing what arrives between two readings."""

    def __init__(self, events: AsyncIterator[Signed[Any]]) -> None:
        self._events = events
        self._next: asyncio.Task[Signed[Any]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})

    async def hear(self, timeout_s: float) -> Signed[Any] | None:
        """Return the next record, or nothing once the time is up."""
        if self._next is None:
            self._next = asyncio.create_task(self._read())
        done, _ = await asyncio.wait({self._next}, timeout=max(0.0, timeout_s))
        if not done:
            return None
        heard, self._next = self._next, None
        return heard.result()

    async def _read(self) -> Signed[Any]:
        return await anext(self._events)
