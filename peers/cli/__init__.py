"""The command line. Imports nothing heavy until a command runs, so that help is instant."""

from __future__ import annotations

import click

from peers import plan_command
from peers.cli import machine, roles, submitter, swarm
from peers.cli.options import Command
from zoonet import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="zoonet")
def cli() -> None:
    """Train AI models together, over the open internet, with nobody in charge.

    \b
    See it work on this machine:     zoonet demo
    Give your machine to a swarm:    zoonet peer --join MULTIADDR
    Hold a public door open:         zoonet bootstrap --public
    Have a model trained:            zoonet submit job.yaml --join MULTIADDR
    """


for command in (
    roles.bootstrap,
    roles.peer,
    swarm.peers,
    swarm.jobs,
    swarm.watch,
    swarm.doctor,
    submitter.submit,
    submitter.result,
    submitter.cancel,
    machine.demo,
    machine.key,
):
    cli.add_command(command)
cli.command("plan", cls=Command)(plan_command.plan)


def main() -> None:
    """Entry point of the `zoonet` script."""
    cli()
