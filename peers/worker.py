"""The worker: finds open jobs that fit this machine and trains one after the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from peers.job_run import JobCancelled, JobRun, OpenTrainer, RunConfig
from peers.node import Node
from zoonet.errors import RoundFailed, ZoonetError
from zoonet.jobs import JobView, ProviderPolicy, misfit, spec_misfit
from zoonet.records import JOBS_TOPIC, Hardware, JobRecord, Signed
from zoonet.transport import ServingScope

LOOK_INTERVAL_S: Final = 10.0
RETRY_AFTER_S: Final = 60.0
FOUNDING_PATIENCE_S: Final = 300.0  # for the first round of a job, where another one is open
MAX_SAID: Final = 1024
NUM_ANSWERED_FOR: Final = 4  # finished jobs, of which peers that come late are still told

log = logging.getLogger(__name__)


def local_hour() -> float:
    """Hour of the day where this machine is, 0 up to 24."""
    now = time.localtime()
    return now.tm_hour + now.tm_min / 60


@dataclass(slots=True, kw_only=True)
class Worker:
    """Runs jobs until cancelled. A job that fails is tried again later, others go on."""

    node: Node
    hardware: Hardware
    policy: ProviderPolicy
    config: RunConfig
    open_trainer: OpenTrainer
    on_job: Callable[[tuple[str, ...]], None] = lambda _: None  # ids of the jobs under way
    hour: Callable[[], float] = local_hour
    _left_alone_until: dict[str, float] = field(default_factory=dict)
    _said: set[tuple[str, str]] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _answered_for: deque[ServingScope] = field(default_factory=deque)  # the oldest first

    async def run(self) -> None:
        """Look for jobs and train them until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                job = await self._next_job()
                if job is not None:
                    await self._train(job)
                    continue
                try:
                    async with asyncio.timeout(LOOK_INTERVAL_S):
                        await self._news.wait()
                except TimeoutError:
                    pass
                self._news.clear()

    async def _listen(self) -> None:
        async with self.node.records.listen(JOBS_TOPIC) as events:
            async for record in events:
                if isinstance(record.body, JobRecord):
                    self._news.set()

    async def _next_job(self, *, besides: str = "") -> Signed[JobRecord] | None:
        """The oldest open job that fits; says once why each of the others does not."""
        try:
            views = await self.node.catalog.views()
        except ZoonetError as error:
            log.info("no jobs to be read: %s", error)
            return None
        now = asyncio.get_running_loop().time()
        for view in views:
            if view.is_final or self._left_alone_until.get(view.job_id, 0.0) > now:
                continue
            if view.job_id == besides:
                continue
            job = await self._record(view)
            if job is None:
                continue
            reason = misfit(job, self.hardware, self.policy, hour=self.hour())
            if not reason and self._is_full(view):
                reason = f"it has its {view.max_peers} peers"
            if not reason:
                return job
            self._say_once(view.job_id, reason)
        return None

    async def _record(self, view: JobView) -> Signed[JobRecord] | None:
        try:
            return await self.node.catalog.record(view.job_id)
        except ZoonetError:
            return None

    def _is_full(self, view: JobView) -> bool:
        others = [peer for peer in view.peers if peer.phase not in ("finished", "failed")]
        return len([p for p in others if p.peer_id != self.node.peer_id]) >= view.max_peers

    def _say_once(self, job_id: str, reason: str) -> None:
        if (job_id, reason) not in self._said:
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said.add((job_id, reason))
            log.info("job=%s is not taken: %s", job_id, reason)

    async def _train(self, job: Signed[JobRecord]) -> None:
        job_id = job.body.job_id
        log.info("took job=%s name=%s", job_id, job.body.name)
        self.on_job((job_id,))
        scope = ServingScope(self.node.transport)
        is_finished = False
        try:
            is_finished = await self._finish(job, replace(self.node, transport=scope))
        finally:
            self.on_job(())
            await self._retire(scope, is_finished=is_finished)

    async def _retire(self, scope: ServingScope, *, is_finished: bool) -> None:
        """Answer no more questions about a job, or where it is finished only about the last few."""
        if not is_finished:
            await scope.end()
            return
        self._answered_for.append(scope)
        if len(self._answered_for) > NUM_ANSWERED_FOR:
            await self._answered_for.popleft().end()

    async def _finish(self, job: Signed[JobRecord], node: Node) -> bool:
        """Train a job to its end, and tell whether it came to one."""
        job_id = job.body.job_id
        run = JobRun(node, job, self.config, self.open_trainer)
        is_finished = False
        try:
            await self._run_while_promising(run, job)
            self._leave_alone(job_id, float("inf"))
            is_finished = True
        except* JobCancelled as cancelled:
            log.info("%s", cancelled.exceptions[0])
            self._leave_alone(job_id, float("inf"))
        except* ZoonetError as failures:
            for failure in failures.exceptions:
                log.warning("job=%s failed here: %s", job_id, failure)
            await run.give_up(str(failures.exceptions[0]))
            self._leave_alone(job_id, asyncio.get_running_loop().time() + RETRY_AFTER_S)
        return is_finished

    async def _run_while_promising(self, run: JobRun, job: Signed[JobRecord]) -> None:
        """Run the job, unless nobody else comes for it while another job could begin."""
        running = asyncio.create_task(
            run.run(lambda prepared: spec_misfit(job, prepared, self.node.peer_id))
        )
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=FOUNDING_PATIENCE_S)
                if running.done() or run.status.num_rounds or run.status.phase != "waiting":
                    continue
                if await self._next_job(besides=job.body.job_id) is not None:
                    raise RoundFailed(
                        f"its {job.body.min_peers} peers have not come together in "
                        f"{FOUNDING_PATIENCE_S:.0f} s, and another job is open"
                    )
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _leave_alone(self, job_id: str, until: float) -> None:
        self._left_alone_until[job_id] = until
