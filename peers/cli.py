"""The command line. Imports nothing heavy until a command runs, so that help is instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from peers import plan_command, runtime
from zoonet import __version__
from zoonet.errors import ConfigError, ZoonetError

F = TypeVar("F", bound=Callable[..., Any])

_MULTIADDR_STARTS: Final = ("/ip4/", "/ip6/", "/dns", "/p2p/", "/unix/")


class Failure(click.ClickException):
    """An error in one red line: what was wrong, where, and what to do next."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.secho(f"error: {self.format_message()}", fg="red", err=True)


class Command(click.Command):
    """A command whose expected errors become one line, and `--join A B C` three addresses."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_join(args))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZoonetError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(str(error)) from error
        except ExceptionGroup as group:
            known = first_known(group)
            if known is None or ctx.params.get("debug"):
                raise
            raise Failure(str(known)) from group
        except runtime.Interrupted as interrupted:
            ctx.exit(interrupted.exit_code)


def spread_join(args: Sequence[str]) -> list[str]:
    """Turn `--join A B` into `--join A --join B`, for B that look like a multiaddr."""
    spread: list[str] = []
    is_joining = False
    for arg in args:
        is_address = arg.startswith(_MULTIADDR_STARTS)
        if is_joining and is_address and spread[-1] != "--join":
            spread.append("--join")
        is_joining = arg == "--join" or arg.startswith("--join=") or (is_joining and is_address)
        spread.append(arg)
    return spread


def first_known(group: BaseExceptionGroup[BaseException]) -> ZoonetError | None:
    """The first of our own errors in a group, or None where it holds anything else too."""
    mine, others = group.split(ZoonetError)
    if mine is None or others is not None:
        return None
    error: BaseException = mine
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ZoonetError)
    return error


def local(command: F) -> F:
    """Options of every command: where its state lives, how much it says."""
    for option in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        click.option(
            "-v", "--verbose", is_flag=True, help="Log the mechanics, not just the story."
        ),
        click.option(
            "--home",
            default="",
            metavar="DIR",
            help="State directory: key, peers met, blocks. Default: $ZOONET_HOME, or yours.",
        ),
    ):
        command = option(command)
    return command


def joining(command: F) -> F:
    """Options of commands that enter a swarm."""
    return click.option(
        "--join",
        multiple=True,
        metavar="MULTIADDR...",
        help="Addresses of peers to enter through; all are tried at once. "
        "Default: peers met before, then the local network.",
    )(command)


def listing(command: F) -> F:
    """The option of commands that print a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def serving(command: F) -> F:
    """Options of roles that others connect to."""
    for option in (
        click.option("--name", default="", help="What others see next to your peer id."),
        click.option(
            "--announce",
            multiple=True,
            metavar="MULTIADDR",
            help="Address under which others reach you, such as that of a forwarded port.",
        ),
        click.option(
            "--listen",
            multiple=True,
            metavar="MULTIADDR",
            help="Where to listen, such as /ip4/0.0.0.0/tcp/31330. Port 0: any free one.",
        ),
    ):
        command = option(command)
    return command


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


@cli.command(cls=Command)
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

    _start(options)
    role.main(role.BootstrapOptions(**_role_options(options)))


@cli.command(cls=Command)
@click.option("--client", is_flag=True, help="Only dial out, be reached through relays.")
@click.option("--lan/--no-lan", default=True, help="Look for peers on the local network.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="On a CPU."
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
    """
    from peers import peer as role
    from zoonet.jobs import ProviderPolicy

    _start(options)
    from_hour, until_hour = _hours(options.pop("hours"))
    policy = ProviderPolicy(
        submitters=options.pop("only_from"),
        kinds=options.pop("only_task"),
        from_hour=from_hour,
        until_hour=until_hour,
        gpu_share=options.pop("gpu_share"),
        memory_share=options.pop("memory_share"),
        max_parameters=options.pop("max_parameters"),
    )
    role.main(role.PeerOptions(policy=policy, **_role_options(options)))


def _hours(text: str) -> tuple[int, int]:
    """Read `22-7`. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ConfigError(f"--hours {text!r} is not two hours, such as 22-7 or 0-24")
    return int(first), int(last)


@cli.command(cls=Command)
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

    commands.list_peers(_start(options, verbosity=-1), join, as_json=as_json)


@cli.command(cls=Command)
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

    commands.list_jobs(_start(options, verbosity=-1), join, as_json=as_json)


@cli.command(cls=Command)
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

    commands.watch_job(_start(options, verbosity=-1), join, job, as_json=as_json)


@cli.command(cls=Command)
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

    home = _start(options, verbosity=-1)
    commands.submit_job(
        home,
        join,
        file,
        max_budget=options["max_budget"],
        as_json=options["as_json"],
        detach=options["detach"],
    )


@cli.command(cls=Command)
@click.argument("job")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the model to; made if missing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@joining
@local
def result(*, job: str, out: Path, as_json: bool, join: tuple[str, ...], **options: Any) -> None:
    """Fetch the model of a finished job from the peers that hold it, and check it.

    \b
    Example:
      zoonet result 5f3c -o my-model
    """
    from peers import commands

    commands.fetch_result(_start(options, verbosity=-1), join, job, out, as_json=as_json)


@cli.command(cls=Command)
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

    commands.cancel_job(_start(options, verbosity=-1), join, job)


@cli.command(cls=Command)
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


@cli.group()
def key() -> None:
    """Show or export the key that is your identity."""


@key.command("show", cls=Command)
@listing
@local
def key_show(*, as_json: bool, **options: Any) -> None:
    """Print your peer id and where the key lies. Makes the key on the first run."""
    from peers import keys

    keys.show(_start(options, verbosity=-1), as_json=as_json)


@key.command("export", cls=Command)
@local
def key_export(**options: Any) -> None:
    """Print the secret, for Client(api_key=...). Whoever has it is you."""
    from peers import keys

    keys.export(_start(options, verbosity=-1))


@cli.command(cls=Command)
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

    home = _start(options, verbosity=-1)
    checks.main(home, join=join, listen=listen, as_json=as_json)


cli.command("plan", cls=Command)(plan_command.plan)


def _start(options: dict[str, Any], *, verbosity: int = 0) -> runtime.Home:
    """Set up logging and the state directory as the common options say."""
    runtime.configure_logging(verbosity=1 if options["verbose"] else verbosity)
    return runtime.home(options["home"])


def _role_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a role takes: the command's options without those of the process."""
    chosen = {name: value for name, value in options.items() if name not in ("debug", "verbose")}
    return chosen | {"home": runtime.home(options["home"]).path}


def main() -> None:
    """Entry point of the `zoonet` script."""
    cli()


if __name__ == "__main__":
    main()
