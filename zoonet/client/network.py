"""The network as a program uses it: look around, submit jobs, follow them, fetch their models."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol, Self

from zoonet.blocks import BlockExchange, Blocks, call_store
from zoonet.client.entry import Entry, EntryConfig
from zoonet.client.output import JobOutput, ResultFetcher
from zoonet.client.prepare import owner_of, prepare
from zoonet.clock import Clock, SystemClock
from zoonet.config import ComputeJob, load_job
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import ConfigError, JobEnded, ProtocolViolation, ShardUnavailable
from zoonet.jobs import Catalog, JobView
from zoonet.membership import Directory
from zoonet.records import PeerRecord, RecordStore, Signed
from zoonet.transport import Path as LanePath
from zoonet.transport import Transport

JOB_ID_CHARS: Final = 32

log = logging.getLogger(__name__)


class Access(Protocol):
    """One peer's access to the swarm, over libp2p or in memory."""

    @property
    def identity(self) -> Identity:
        """The key that signs."""
        ...

    @property
    def transport(self) -> Transport:
        """Streams to other peers."""
        ...

    @property
    def records(self) -> RecordStore:
        """Signed records."""
        ...


class Network:
    """A user's access to the network. All coroutines may be cancelled.

    Made by `await Network.join(...)`; close it with `close()` or use it as a context manager.
    """

    def __init__(
        self,
        swarm: Access,
        store: Blocks,
        *,
        clock: Clock | None = None,
        directory: Directory | None = None,
        entry: Entry | None = None,
    ) -> None:
        """Stand on an open swarm; `serve` must follow. Users call `join` instead."""
        clock = clock or SystemClock()
        self.identity = swarm.identity
        self._exchange = BlockExchange(swarm.transport, store)
        self._catalog = Catalog(swarm.identity, swarm.records, clock)
        self._directory = directory or Directory(swarm.identity, swarm.records, clock)
        self._entry = entry
        self._owners: dict[str, str] = {}  # of the pinned blocks of each submitted job

    @classmethod
    async def join(
        cls,
        bootstrap: Iterable[str] = (),
        *,
        identity: Identity | None = None,
        config: EntryConfig | None = None,
    ) -> Self:
        """Enter the swarm through any of the peers named by multiaddr, each with its /p2p/<id>.

        Without names: through peers met before, then through the local network. Without an
        identity a new key is made, which lasts as long as this object. Raises ConfigError for
        malformed addresses, PeerUnreachable where nobody answers.
        """
        entry = await Entry.open(
            identity or Identity.generate(), tuple(bootstrap), config or EntryConfig()
        )
        try:
            network = cls(entry, entry.store, directory=entry.directory, entry=entry)
            await network.serve()
        except BaseException:  # a cancelled caller must not leave a daemon behind
            await entry.close()
            raise
        return network

    async def serve(self) -> None:
        """Begin to answer peers that ask for the blocks of submitted jobs."""
        await self._exchange.serve()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the swarm. Jobs that others hold go on without this peer. Idempotent."""
        for owner in self._owners.values():
            self._exchange.store.unpin(owner)
        self._owners.clear()
        if self._entry is not None:
            await self._entry.close()

    async def peers(self) -> list[Signed[PeerRecord]]:
        """Who is in the swarm, in the order of peer ids."""
        return await self._directory.refresh()

    async def paths(self) -> Mapping[PeerId, LanePath]:
        """How bulk bytes travel from here to each connected peer: direct, relayed, shm."""
        return await self._entry.host.paths() if self._entry is not None else {}

    async def jobs(self) -> list[JobView]:
        """Every job that is neither cancelled nor expired, the oldest first."""
        return await self._catalog.views()

    async def job(self, job_id: str) -> JobView:
        """Where one job stands. Raises ConfigError where there is none."""
        return await self._catalog.view(job_id)

    async def find(self, prefix: str) -> str:
        """Return the id of the one job that begins so. Raises ConfigError."""
        prefix = prefix.lower()
        if len(prefix) == JOB_ID_CHARS:
            return prefix
        found = [job.job_id for job in await self.jobs() if job.job_id.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{len(found)} jobs begin with {prefix!r}; give more of the id")
        raise ConfigError(
            f"no open job begins with {prefix!r}; list them with: zoonet jobs "
            "(cancelled and expired ones need the whole id)"
        )

    async def submit(self, job: ComputeJob | Path | str) -> str:
        """Open a job, or the job of a YAML file, for everyone; return its id.

        Prepares data and parameters first, in a thread. They are served from here: stay until
        `handed_over` returns. Raises ConfigError, StorageError or TransportError.
        """
        if not isinstance(job, ComputeJob):
            job = load_job(job)
        store = self._exchange.store
        prepared = await call_store(store, prepare, job, store)
        record = await self._catalog.publish(prepared, budget_max=job.budget_max)
        self._owners[record.body.job_id] = owner_of(prepared)
        return record.body.job_id

    async def handed_over(self, job_id: str, *, num_peers: int = 1) -> None:
        """Return once so many other peers hold the job's blocks, or it is finished.

        Raises JobEnded where it ends before.
        """
        async with aclosing(self._catalog.follow(job_id)) as views:
            async for view in views:
                holders = [
                    peer.peer_id
                    for peer in view.peers
                    if peer.phase not in ("joining", "failed")
                    and peer.peer_id != self.identity.peer_id
                ]
                if len(holders) >= num_peers or view.phase == "finished":
                    log.info("handed over job=%s peers=%d", job_id, len(holders))
                    return
        raise JobEnded(job_id, view.phase, view.note)

    def watch(self, job_id: str) -> AsyncGenerator[JobView, None]:
        """Yield the job's view, and again whenever it changes, until it has ended.

        Raises ConfigError where there is no such job.
        """
        return self._catalog.follow(job_id)

    async def wait(self, job_id: str) -> JobView:
        """Return the last view of the job once it is finished.

        Raises JobEnded where it was cancelled, expired or failed.
        """
        async with aclosing(self.watch(job_id)) as views:
            note = ""
            async for view in views:
                if view.note != note:
                    note = view.note
                    log.info("job=%s is %s: %s", job_id, view.phase, note or "going on")
        if view.phase != "finished":
            raise JobEnded(job_id, view.phase, view.note)
        return view

    async def result(
        self, job_id: str, out_dir: Path | str, *, with_car: bool = False
    ) -> JobOutput:
        """Fetch a finished job's model from the peers that hold it, check it and write it.

        Writes model.safetensors, config.json, tokenizer.json, chain.msgpack and report.json into
        `out_dir`, and model.car for IPFS where `with_car` says so. The model that most participants
        name is taken; where its chain of certified rounds does not carry it, the next one. Raises
        ConfigError where there is no model yet, ShardUnavailable where its holders are gone,
        ProtocolViolation where none is good, StorageError.
        """
        view = await self._catalog.view(job_id)
        if not view.results:
            raise ConfigError(
                f"job {job_id} has no model yet: it is {view.phase}"
                + (f" ({view.note})" if view.note else "")
            )
        await self._directory.refresh()  # where the holders are
        fetcher = ResultFetcher(self._exchange, view)
        folder = Path(out_dir)
        failure: ProtocolViolation | ShardUnavailable | None = None
        for result in view.results:
            try:
                return await fetcher.fetch(result, folder, with_car=with_car)
            except (ProtocolViolation, ShardUnavailable) as error:
                holders = ",".join(short(holder) for holder in result.holders)
                log.warning("result not usable job=%s holders=%s: %s", job_id, holders, error)
                failure = failure or error
        assert failure is not None
        raise failure

    async def cancel(self, job_id: str) -> None:
        """Withdraw an own job: its peers stop at the next round.

        Raises ConfigError where it is another's, unknown, or has ended.
        """
        await self._catalog.cancel(job_id)
        owner = self._owners.pop(job_id, "")
        if owner:
            self._exchange.store.unpin(owner)
