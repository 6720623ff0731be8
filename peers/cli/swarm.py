"""Commands that look at a swarm: `peers`, `jobs`, `watch`, and `doctor` where there is none."""

from __future__ import annotations

from typing import Any

import click

from peers.cli.options import Command, joining, listing, local, start


@click.command(cls=Command)
@listing
@joining
@local
def peers(*, as_json: bool, join: tuple[str, ...], **options: Any) -> None:
    """List the peers of the swarm.

    \b
    Examples:
      zoonet peers --join /ip4/203.0.113.7/tcp/31330/p2p/16Uiu2...
      zoonet peers --json | jq '.[].name'
    """
    from peers import commands

    commands.list_peers(start(options, verbosity=-1), join, as_json=as_json)


@click.command(cls=Command)
@listing
@joining
@local
def jobs(*, as_json: bool, join: tuple[str, ...], **options: Any) -> None:
    """List the jobs of the swarm.

    \b
    Example:
      zoonet jobs --join /ip4/203.0.113.7/tcp/31330/p2p/16Uiu2...
    """
    from peers import commands

    commands.list_jobs(start(options, verbosity=-1), join, as_json=as_json)


@click.command(cls=Command)
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each report.")
@joining
@local
def watch(*, job: str, as_json: bool, join: tuple[str, ...], **options: Any) -> None:
    """Follow a job until it is finished: who trains it, how fast, and the loss.

    JOB is the job's id, or enough of its beginning.

    \b
    Example:
      zoonet watch 5f3c
    """
    from peers import commands

    commands.watch_job(start(options, verbosity=-1), join, job, as_json=as_json)


@click.command(cls=Command)
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Check that it is free.")
@listing
@joining
@local
def doctor(
    *, listen: tuple[str, ...], as_json: bool, join: tuple[str, ...], **options: Any
) -> None:
    """Find out why this machine does not connect: names the cause and the cure.

    \b
    Example:
      zoonet doctor --join /ip4/203.0.113.7/tcp/31330/p2p/16Uiu2...
    """
    from peers import doctor as checks

    home = start(options, verbosity=-1)
    checks.main(home, join=join, listen=listen, as_json=as_json)
