"""What the commands of the command line share: their options, and how their errors are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from peers import runtime
from zoonet.errors import ZoonetError

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


def start(options: dict[str, Any], *, verbosity: int = 0) -> runtime.Home:
    """Set up logging and the state directory as the common options say."""
    runtime.configure_logging(verbosity=1 if options["verbose"] else verbosity)
    return runtime.home(options["home"])
