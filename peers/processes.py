"""Roles as child processes: started apart from the terminal, never outliving their parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from peers.runtime import die_with_parent
from zoonet.errors import ZoonetError

READY_TIMEOUT_S: Final = 90.0  # a laden machine needs a minute to import torch many times
GOODBYE_TIMEOUT_S: Final = 10.0  # to close on SIGTERM before SIGKILL follows
_TAIL_LINES: Final = 5


class ChildFailed(ZoonetError):
    """A child process ended or stayed silent when it should be ready."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running `zoonet` command."""

    name: str
    process: asyncio.subprocess.Process
    log_path: Path  # its stderr

    @property
    def is_running(self) -> bool:
        """Tell whether the process itself is still there."""
        return self.process.returncode is None

    def log_tail(self) -> str:
        """The last lines it logged."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "no log"
        return "\n".join(lines[-_TAIL_LINES:]) or "it logged nothing"


class Family:
    """The children of one program. Leave the context and none of them, nor theirs, is left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []
        self._descendants: dict[int, psutil.Process] = {}

    @property
    def children(self) -> tuple[Child, ...]:
        """Everyone who was started, in that order."""
        return tuple(self._children)

    @contextlib.asynccontextmanager
    async def keep(self) -> AsyncIterator[Family]:
        """A context that ends every child: politely, then by force. Safe to cancel."""
        try:
            yield self
        finally:
            # A second Ctrl-C ends the process; until then the goodbye is not interrupted.
            await asyncio.shield(asyncio.ensure_future(self._end_all()))

    async def start(
        self, name: str, arguments: Sequence[str], *, module: str = "peers.cli"
    ) -> Child:
        """Start `zoonet ARGUMENTS` in a session of its own, stderr to a log file.

        Or another module, as `python -m` would.
        """
        log_path = self._directory / f"{name}.log"
        with log_path.open("wb") as log_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        child = Child(name, process, log_path)
        self._children.append(child)
        return child

    async def first_line(self, child: Child) -> dict[str, Any]:
        """Wait for the JSON line by which a role says that it is ready.

        Raises ChildFailed where it ends or says nothing in READY_TIMEOUT_S.
        """
        assert child.process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await child.process.stdout.readline()
        except TimeoutError as error:
            raise ChildFailed(
                f"{child.name} was not ready in {READY_TIMEOUT_S:.0f} s; it said last:\n"
                f"{child.log_tail()}"
            ) from error
        try:
            return dict(json.loads(line))
        except ValueError as error:
            await child.process.wait()
            raise ChildFailed(
                f"{child.name} ended with exit code {child.process.returncode} before it was "
                f"ready; it said last:\n{child.log_tail()}"
            ) from error

    async def kill(self, child: Child) -> None:
        """End a child as a power cut would: SIGKILL, no goodbye."""
        self._note_descendants(child)
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
        await child.process.wait()

    async def _end_all(self) -> None:
        running = [child for child in self._children if child.is_running]
        for child in running:
            self._note_descendants(child)
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(self._wait_or_kill(child) for child in running))
        await asyncio.to_thread(_end_orphans, self._descendants.values())

    async def _wait_or_kill(self, child: Child) -> None:
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await child.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
            await child.process.wait()

    def _note_descendants(self, child: Child) -> None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(child.process.pid).children(recursive=True):
                self._descendants[process.pid] = process


def _end_orphans(processes: Iterable[psutil.Process]) -> None:
    """Give grandchildren a moment to follow their parents, then end those that did not."""
    _, orphans = psutil.wait_procs(list(processes), timeout=5.0)
    for orphan in orphans:
        with contextlib.suppress(psutil.Error):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=5.0)
