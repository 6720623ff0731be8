"""Commands that enter a swarm for a moment: look around, submit, follow, fetch."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from rich.console import Console

from peers import runtime
from peers.keys import identity_of
from peers.ui.follow import Follower
from peers.ui.listing import contribution_table, job_row, job_table, peer_row, peer_table
from peers.ui.live import LiveView
from zoonet.client import EntryConfig, JobOutput, Network
from zoonet.config import load_job
from zoonet.crypto import Identity
from zoonet.errors import ConfigError
from zoonet.jobs import JobView
from zoonet.membership import PeerCache


def list_peers(home: runtime.Home, join: Sequence[str], *, as_json: bool) -> None:
    """Print who is in the swarm."""

    async def look() -> None:
        async with _visit(home, join) as network:
            paths = await network.paths()
            rows = [
                peer_row(record, paths.get(record.author, "")) for record in await network.peers()
            ]
        _print(rows, as_json, lambda: peer_table(rows))

    runtime.run(look())


def list_jobs(home: runtime.Home, join: Sequence[str], *, as_json: bool) -> None:
    """Print the jobs of the swarm."""

    async def look() -> None:
        async with _visit(home, join) as network:
            rows = [job_row(job) for job in await network.jobs()]
        _print(rows, as_json, lambda: job_table(rows))

    runtime.run(look())


def watch_job(home: runtime.Home, join: Sequence[str], job: str, *, as_json: bool) -> None:
    """Follow a job to its end."""

    async def watch() -> None:
        async with _visit(home, join) as network:
            await _show_until_ended(network, await network.find(job), as_json=as_json)

    runtime.run(watch())


def submit_job(
    home: runtime.Home,
    join: Sequence[str],
    file: Path,
    *,
    max_budget: float | None,
    as_json: bool,
    detach: bool,
) -> None:
    """Submit the job of a file and follow it, or leave once others hold it."""
    job = load_job(file)
    if max_budget is not None:
        job = dataclasses.replace(job, budget_max=max_budget)

    async def submit() -> None:
        async with _visit(home, join, identity=_own_identity(home)) as network:
            job_id = await network.submit(job)
            print(json.dumps({"job_id": job_id}) if as_json else f"job {job_id}", flush=True)
            if detach:
                await network.handed_over(job_id)
                return
            try:
                await _show_until_ended(network, job_id, as_json=as_json)
            except asyncio.CancelledError:
                print(
                    "the job goes on where peers have fetched its data; "
                    f"follow it with: zoonet watch {job_id[:8]}",
                    file=sys.stderr,
                )
                raise

    runtime.run(submit())


def fetch_result(
    home: runtime.Home,
    join: Sequence[str],
    job: str,
    out: Path,
    *,
    with_car: bool,
    as_json: bool,
) -> None:
    """Write a finished job's model into a directory."""

    async def fetch() -> JobOutput:
        async with _visit(home, join) as network:
            return await network.result(await network.find(job), out, with_car=with_car)

    output = runtime.run(fetch())
    if as_json:
        print(output.report.read_text())
        return
    console = Console()
    console.print(contribution_table(output.contributions))
    loss = f", held-out loss {output.eval_loss:.3f}" if output.eval_loss else ""
    print(f"{output.num_rounds} certified rounds{loss}\nwrote {output.model}")
    if with_car:
        print(f"wrote {output.car}; for IPFS: ipfs dag import {output.car}")


def cancel_job(home: runtime.Home, join: Sequence[str], job: str) -> None:
    """Withdraw an own job."""

    async def cancel() -> str:
        async with _visit(home, join, identity=_own_identity(home)) as network:
            job_id = await network.find(job)
            await network.cancel(job_id)
            return job_id

    print(f"cancelled {runtime.run(cancel())}")


@asynccontextmanager
async def _visit(
    home: runtime.Home, join: Sequence[str], *, identity: Identity | None = None
) -> AsyncIterator[Network]:
    """Be in the swarm for a moment. Who only looks comes with a fresh key, never with a peer's."""
    acquaintances = PeerCache(home.path / "peers.json").addresses()
    config = EntryConfig(folder=home.path / "client")
    entrances = tuple(join) or acquaintances
    async with await Network.join(entrances, identity=identity, config=config) as network:
        yield network


def _own_identity(home: runtime.Home) -> Identity:
    """The key of the state directory, which no running peer may be using at the same time.

    Raises ConfigError where one does: two nodes with one peer id would take each other's messages.
    """
    try:
        lock = os.open(home.run_dir / "lock", os.O_RDWR)
    except FileNotFoundError:
        return identity_of(home)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(
            f"a peer is running with the key of {home.path}; "
            "use another key for this: --home DIR (made if missing)"
        ) from error
    finally:
        os.close(lock)
    return identity_of(home)


async def _show_until_ended(network: Network, job_id: str, *, as_json: bool) -> None:
    if as_json:
        async with aclosing(network.watch(job_id)) as looks:
            async for job in looks:
                print(json.dumps(job_row(job) | {"peers": _peers_of(job)}), flush=True)
        return
    with LiveView(Console(), title=f"job {job_id}") as live:
        view = await Follower(live.show).follow(network.watch(job_id))
    assert view.job is not None
    print(f"{view.job.phase}{f': {view.job.note}' if view.job.note else ''}")
    if view.job.phase == "finished":
        print(f"fetch the model with: zoonet result {job_id[:8]} -o DIR")


def _peers_of(job: JobView) -> list[dict[str, object]]:
    return [dataclasses.asdict(peer) for peer in job.peers]


def _print(rows: list[dict[str, object]], as_json: bool, table: Callable[[], object]) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(table())
