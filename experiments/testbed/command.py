"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from experiments.testbed.kernel import BedUnavailable
from experiments.testbed.machine_load import MAX_OTHERS_CORES
from peers import runtime

T = TypeVar("T")

EXIT_UNAVAILABLE: Final = 2


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--repeats", type=int, default=5, help="runs that count (default 5)")
    made.add_argument(
        "--smoke", action="store_true", help="see in seconds whether it works; no figures"
    )
    made.add_argument(
        "--others-cores",
        type=float,
        default=MAX_OTHERS_CORES,
        help="runs do not count while other programs use more (default %(default)s cores)",
    )
    made.add_argument("--contenders", default="", help="only these, by comma")
    made.add_argument("--out", type=Path, help="the JSON (default in experiments/results)")
    return made


def chosen(
    options: argparse.Namespace, everybody: tuple[str, ...], usual: tuple[str, ...]
) -> tuple[str, ...]:
    """The contenders that the command names, else the usual ones. Exits for an unknown name."""
    if not options.contenders:
        return usual
    names = tuple(options.contenders.split(","))
    if unknown := sorted(set(names) - set(everybody)):
        sys.exit(f"nobody here is called {', '.join(unknown)}; there are {', '.join(everybody)}")
    return names


def require(check: Callable[[], None]) -> None:
    """Exit with 2, saying what to do, where a check raises BedUnavailable."""
    try:
        check()
    except BedUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)


def run(main: Callable[[Path], Awaitable[T]]) -> T:
    """Run a benchmark with a scratch folder. Exits with 2 where this machine cannot."""
    runtime.configure_logging(verbosity=-1)

    async def with_folder() -> T:
        # Short, because sockets lie in it.
        with tempfile.TemporaryDirectory(prefix="zt-", ignore_cleanup_errors=True) as folder:
            return await main(Path(folder))

    try:
        return runtime.run(with_folder())
    except BedUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    except runtime.Interrupted as stopped:
        sys.exit(stopped.exit_code)
