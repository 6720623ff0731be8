"""Commands that run a role, until they are told to stop: `bootstrap` and `peer`."""

from __future__ import annotations

from typing import Any

import click

from peers import runtime
from peers.cli.options import Command, joining, local, serving, start
from zoonet.errors import ConfigError


@click.command(cls=Command)
@click.option("--public", is_flag=True, help="This machine has a public address: relay for others.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready.")
@serving
@joining
@local
def bootstrap(**options: Any) -> None:
    """Run a peer that others enter through, and print its address.

    \b
    Examples:
      zoonet bootstrap                                  # on your own network
      zoonet bootstrap --public --listen /ip4/0.0.0.0/tcp/31330
    """
    from peers import bootstrap as role

    start(options)
    role.main(role.BootstrapOptions(**_role_options(options)))


@click.command(cls=Command)
@click.option("--client", is_flag=True, help="Only dial out, be reached through relays.")
@click.option("--lan/--no-lan", default=True, help="Look for peers on the local network.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:1, ... Several hold one model together: cuda:0,cuda:1.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="On a CPU."
)
@click.option(
    "--compile", is_flag=True, help="Train through torch.compile: slow to start, then faster."
)
@click.option(
    "--bulk-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="TCP port for tensors, where one is forwarded to you. 0: any free one.",
)
@click.option("--only-from", multiple=True, metavar="PEER_ID", help="Take this submitter's jobs.")
@click.option(
    "--only-task", multiple=True, type=click.Choice(["causal-lm", "embedding"]), help="Take these."
)
@click.option("--hours", metavar="FROM-UNTIL", default="0-24", help="Local hours, such as 22-7.")
@click.option("--gpu-share", type=float, default=1.0, help="Of each GPU's memory.")
@click.option("--memory-share", type=float, default=0.8, help="Of this machine's memory.")
@click.option("--max-parameters", type=int, default=0, help="Of a job's model. 0: any number.")
@serving
@joining
@local
def peer(**options: Any) -> None:
    """Give this machine to a swarm: find open jobs that fit, and train them.

    \b
    Examples:
      zoonet peer --join /ip4/203.0.113.7/tcp/31330/p2p/16Uiu2...
      zoonet peer                    # peers met before, then the local network, then alone
      zoonet peer --hours 22-7 --memory-share 0.5
      zoonet peer --device cuda:1 --compile
      zoonet peer --device cuda:0,cuda:1
    """
    from peers import peer as role
    from zoonet.jobs import ProviderPolicy

    start(options)
    from_hour, until_hour = _hours(options.pop("hours"))
    policy = ProviderPolicy(
        submitters=options.pop("only_from"),
        kinds=options.pop("only_task"),
        from_hour=from_hour,
        until_hour=until_hour,
        gpu_share=options.pop("gpu_share"),
        memory_share=options.pop("memory_share"),
        max_parameters=options.pop("max_parameters"),
        num_devices=options["device"].count(",") + 1,
    )
    role.main(role.PeerOptions(policy=policy, **_role_options(options)))


def _hours(text: str) -> tuple[int, int]:
    """Read `22-7`. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ConfigError(f"--hours {text!r} is not two hours, such as 22-7 or 0-24")
    return int(first), int(last)


def _role_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a role takes: the command's options without those of the process."""
    chosen = {name: value for name, value in options.items() if name not in ("debug", "verbose")}
    return chosen | {"home": runtime.home(options["home"]).path}
