"""Commands about this machine alone: `demo` and `key`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from peers import runtime
from peers.cli.options import Command, listing, local, start


@click.command(cls=Command)
@click.option(
    "--seconds",
    type=click.IntRange(min=30),
    default=120,
    show_default=True,
    help="How long it may take, start-up and all.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, path_type=Path),
    help="Train on this file or directory, not on Python's standard library.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=4, max=16),
    default=4,
    show_default=True,
    help="Peers from the start; one more comes late.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("zoonet-demo"),
    show_default=True,
    help="Directory for the results.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Log the story, keep each process's log.")
def demo(**options: Any) -> None:
    """Watch several real peers on this machine train one model together.

    One of them is killed on the way and another one comes late, by design. Leaves the model, a
    sample of what it writes, a picture of its loss and a report.

    \b
    Examples:
      zoonet demo
      zoonet demo --seconds 40
      zoonet demo --text my-novel.txt --out novel-model
    """
    from peers import demo as role

    is_verbose = options.pop("verbose")
    runtime.configure_logging(verbosity=0 if is_verbose else -1)
    options.pop("debug")
    role.main(role.DemoOptions(keep_logs=is_verbose, **options))


@click.group()
def key() -> None:
    """Show or export the key that is your identity."""


@key.command("show", cls=Command)
@listing
@local
def key_show(*, as_json: bool, **options: Any) -> None:
    """Print your peer id and where the key lies. Makes the key on the first run."""
    from peers import keys

    keys.show(start(options, verbosity=-1), as_json=as_json)


@key.command("export", cls=Command)
@local
def key_export(**options: Any) -> None:
    """Print the secret, for Client(api_key=...). Whoever has it is you."""
    from peers import keys

    keys.export(start(options, verbosity=-1))
