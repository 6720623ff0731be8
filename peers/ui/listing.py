"""Rows of listings: dictionaries for JSON, tables (with shortened ids) for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from peers.ui.render import in_bytes, in_count
from peers.ui.view import printable
from zoonet.client import Contribution
from zoonet.jobs import JobView
from zoonet.records import PeerRecord, Signed

Row = dict[str, Any]


def peer_row(record: Signed[PeerRecord], path: str = "") -> Row:
    """One peer, as it describes itself, and by which path it is connected from here."""
    body = record.body
    return {
        "peer_id": body.peer_id,
        "name": body.name,
        "roles": list(body.roles),
        "reachability": body.reachability,
        "path": path,
        "tier": body.tier,
        "num_cpus": body.hardware.num_cpus,
        "memory_bytes": body.hardware.memory_bytes,
        "num_gpus": body.hardware.num_gpus,
        "gpu_name": body.hardware.gpu_name,
        "jobs": list(body.jobs),
        "addresses": list(body.addresses),
        "version": body.version,
        "started_at": body.started_at,
    }


def job_row(job: JobView) -> Row:
    """One job, as its submitter and participants describe it."""
    return {
        "job_id": job.job_id,
        "name": job.name,
        "task": job.task,
        "phase": job.phase,
        "num_peers": len(job.peers),
        "num_rounds": job.num_rounds,
        "num_tokens": job.num_tokens,
        "total_tokens": job.total_tokens,
        "num_parameters": job.num_parameters,
        "eval_loss": job.eval_loss,
        "tokens_per_s": job.tokens_per_s,
        "budget_max": job.budget_max,
        "submitter": job.submitter,
        "submitted_at": job.submitted_at,
        "note": job.note,
    }


def peer_table(rows: Sequence[Row]) -> Table:
    """The peers of a swarm."""
    table = _table("peer id", "name", "roles", "reached", "path", "tier", "hardware", "jobs")
    for row in rows:
        gpus = f", {row['num_gpus']}x {row['gpu_name']}" if row["num_gpus"] else ""
        hardware = f"{row['num_cpus']} CPUs, {in_bytes(row['memory_bytes'])}{gpus}"
        _add(
            table,
            _short(row["peer_id"]),
            row["name"],
            ", ".join(row["roles"]),
            row["reachability"],
            row["path"],
            row["tier"],
            hardware if row["num_cpus"] else "",
            " ".join(job_id[:8] for job_id in row["jobs"]),
        )
    return table


def job_table(rows: Sequence[Row]) -> Table:
    """The jobs of a swarm."""
    table = _table("job", "name", "phase", "peers", "tokens", "parameters", "loss", "note")
    for row in rows:
        _add(
            table,
            row["job_id"][:8],
            row["name"],
            row["phase"],
            str(row["num_peers"]),
            f"{in_count(row['num_tokens'])} of {in_count(row['total_tokens'])}",
            in_count(row["num_parameters"]),
            f"{row['eval_loss']:.3f}" if row["eval_loss"] else "",
            row["note"],
        )
    return table


def contribution_table(contributions: Sequence[Contribution]) -> Table:
    """Who made a model, from its certified rounds."""
    table = _table("peer id", "name", "rounds", "tokens", "share")
    total = sum(one.num_tokens for one in contributions) or 1
    for one in contributions:
        share = f"{100 * one.num_tokens / total:.0f} %"
        tokens = in_count(one.num_tokens)
        _add(table, _short(one.peer_id), one.name, str(one.num_rounds), tokens, share)
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title)
    return table


def _short(peer_id: str) -> str:
    return f"…{peer_id[-8:]}"


def _add(table: Table, *cells: str) -> None:
    """Add a row of strangers' words: no markup, no control characters."""
    table.add_row(*(Text(printable(cell, max_chars=120)) for cell in cells))
