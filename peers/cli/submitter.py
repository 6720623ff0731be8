"""Commands of who has a model trained: `submit`, `result` and `cancel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from peers.cli.options import Command, joining, local, start


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--max-budget", type=float, help="Replaces the budget that the file names.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's id as JSON.")
@click.option(
    "--detach", is_flag=True, help="Leave as soon as other peers hold the data, without watching."
)
@joining
@local
def submit(*, file: Path, join: tuple[str, ...], **options: Any) -> None:
    """Submit a job described in FILE (YAML), and follow it.

    The data and the initial model stay on this machine until other peers have fetched them.

    \b
    Examples:
      zoonet submit job.yaml --join /ip4/203.0.113.7/tcp/31330/p2p/16Uiu2...
      zoonet submit job.yaml --max-budget 5000
    """
    from peers import commands

    home = start(options, verbosity=-1)
    commands.submit_job(
        home,
        join,
        file,
        max_budget=options["max_budget"],
        as_json=options["as_json"],
        detach=options["detach"],
    )


@click.command(cls=Command)
@click.argument("job")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the model to; made if missing.",
)
@click.option("--car", is_flag=True, help="Write model.car, too, for: ipfs dag import model.car")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@joining
@local
def result(
    *, job: str, out: Path, car: bool, as_json: bool, join: tuple[str, ...], **options: Any
) -> None:
    """Fetch the model of a finished job from the peers that hold it, and check it.

    \b
    Example:
      zoonet result 5f3c -o my-model
    """
    from peers import commands

    home = start(options, verbosity=-1)
    commands.fetch_result(home, join, job, out, with_car=car, as_json=as_json)


@click.command(cls=Command)
@click.argument("job")
@joining
@local
def cancel(*, job: str, join: tuple[str, ...], **options: Any) -> None:
    """Cancel a job that you submitted; its peers stop at the next round.

    \b
    Example:
      zoonet cancel 5f3c
    """
    from peers import commands

    commands.cancel_job(start(options, verbosity=-1), join, job)
