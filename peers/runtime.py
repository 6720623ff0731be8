"""The process around a role: the only place that knows environment variables, signals, log
handlers and the event loop's make."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from zoonet.errors import StorageError

T = TypeVar("T")

HOME_VARIABLE: Final = "ZOONET_HOME"
PASSPHRASE_VARIABLE: Final = "ZOONET_PASSPHRASE"
MAX_RUN_DIR_BYTES: Final = 64  # a socket's whole path may have about 100
MAPPED_BYTES: Final = 4 * 1024 * 1024  # allocations from this size on are mapped one by one
KEPT_BYTES: Final = 64 * 1024 * 1024  # of freed smaller ones, at the end of a heap
NUM_HEAPS: Final = 2
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_STOPPING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # HUP: no terminal

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The process was asked to stop by a signal, and everything it ran has been closed."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True, slots=True)
class Home:
    """Directory of what a peer remembers between runs: its key, peers it met, its blocks."""

    path: Path

    @property
    def key_path(self) -> Path:
        """File of the identity key (PKCS #8 PEM, mode 0600)."""
        return self.path / "identity.pem"

    @property
    def run_dir(self) -> Path:
        """Directory of sockets; elsewhere where this path is too long for a socket's name."""
        inside = self.path / "run"
        if len(os.fsencode(inside)) <= MAX_RUN_DIR_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"zoonet-{digest}"


def home(chosen: str = "") -> Home:
    """Return the state directory, made if missing: `chosen`, else ZOONET_HOME, else the user's.

    Raises StorageError where it cannot be made or written.
    """
    import platformdirs

    place = chosen or os.environ.get(HOME_VARIABLE, "")
    path = Path(place).expanduser() if place else Path(platformdirs.user_data_dir("zoonet"))
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(
            f"cannot make the state directory {path}: {error.strerror}; "
            f"name another with --home or {HOME_VARIABLE}"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StorageError(
            f"the state directory {path} cannot be written; "
            f"name another with --home or {HOME_VARIABLE}"
        )
    return Home(path.resolve())


def passphrase() -> str:
    """The passphrase of the key file, or "" where none is set."""
    return os.environ.get(PASSPHRASE_VARIABLE, "")


def configure_logging(*, verbosity: int) -> None:
    """Send the story (or with verbosity 1 the mechanics) to stderr; -1 keeps to errors.

    Colours and columns on a terminal, plain lines for a file or a service's journal.
    """
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    level = {-1: logging.ERROR, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    for name in ("zoonet", "peers"):
        logging.getLogger(name).setLevel(level)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on uvloop.

    The first SIGINT, SIGTERM or SIGHUP cancels it, so that it can say goodbye, and raises
    Interrupted when it has; the second ends the process at once.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signalled(main))


def run_role(main: Coroutine[Any, Any, None]) -> None:
    """Run a role until it ends or is told to: for a role a signal is the normal end."""
    tame_allocator()
    try:
        run(main)
    except Interrupted:
        log.info("stopped")


async def _until_signalled(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def stop(signal_number: int) -> None:
        if received:
            os._exit(128 + signal_number)
        received.append(signal_number)
        log.info("stopping signal=%s (again to force)", signal.Signals(signal_number).name)
        task.cancel()

    for number in _STOPPING_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await main
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in _STOPPING_SIGNALS:
            loop.remove_signal_handler(number)


def tame_allocator() -> bool:
    """Have freed tensors go back to the system at once; call it before threads begin.

    glibc gives each thread a heap of its own, and after the first large array was freed the next
    ones lie in these heaps. Vectors come and go in two dozen threads here: peers with 16 MiB of
    payload were measured at up to 640 MiB instead of 480 to 510. Tells whether this process has
    such an allocator.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MAPPED_BYTES),  # a fixed one never rises
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_ARENA_MAX, NUM_HEAPS),
    )
    return all(libc.mallopt(name, value) for name, value in settings)


def give_back_freed() -> None:
    """Let go of garbage and return all freed pieces of the heaps to the system: for quiet moments.

    Otherwise what a round frees between pieces that stay is kept, and a little more from round to
    round. Call it in the thread of the event loop. The system gets its memory back in a thread of
    its own, where the allocator is glibc.
    """
    collect_garbage()
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        threading.Thread(target=trim, args=(0,), name="malloc-trim", daemon=True).start()


def collect_garbage() -> None:
    """Let go of objects that only hold each other, such as the tracebacks of cancelled tasks.

    Python by itself looks at all objects when a quarter as many new ones have come to stay. That
    is after thousands of rounds, for libraries alone are 200,000 objects. So these, all that is
    there at the first call, are not looked at any more, and later calls take a millisecond.
    """
    gc.collect()
    _freeze_once()


@functools.cache
def _freeze_once() -> None:
    gc.freeze()


def die_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent ends, however it ends.

    Meant for a child between fork and exec. Elsewhere than on Linux it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
