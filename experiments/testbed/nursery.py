"""Peers' processes without the wait: forked from one that has imported everything already.

    python -m experiments.testbed.nursery FD [CONTENDER ...]

On the socket FD comes a JSON line for each process to be, with three descriptors: its stdin, its
stdout and its log. Each is answered with a process id. The end of the socket ends the nursery, and
with it every process that came out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from experiments.testbed import kernel
from peers.runtime import die_with_parent

READY_S: Final = 120.0
_MAX_MESSAGE_BYTES: Final = 4096


class NurseryFailed(Exception):
    """The process out of which peers come did not start, or ended."""


@dataclass(slots=True)
class Nursery:
    """The driver's end. Open it with `async with Nursery.open(contenders)`."""

    _socket: socket.socket

    @classmethod
    @asynccontextmanager
    async def open(cls, preloaded: Sequence[str]) -> AsyncIterator[Self]:
        """Start the process; it imports these contenders' modules once for all."""
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "experiments.testbed.nursery"),
            *(str(theirs.fileno()), *preloaded),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        theirs.close()
        ours.settimeout(READY_S)
        try:
            nursery = cls(ours)
            await asyncio.to_thread(nursery._answer)
            yield nursery
        finally:
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _answer(self) -> dict[str, Any]:
        try:
            raw = self._socket.recv(_MAX_MESSAGE_BYTES)
        except OSError as error:
            raise NurseryFailed(f"the nursery says nothing: {error}") from error
        if not raw:
            raise NurseryFailed("the nursery ended; what it said is above")
        answer: dict[str, Any] = json.loads(raw)
        if "error" in answer:
            raise NurseryFailed(answer["error"])
        return answer

    def spawn(self, namespace: str, log_path: Path, *, use_uvloop: bool) -> Newborn:
        """Fork an actor inside a namespace (none: "")."""
        orders_read, orders_write = os.pipe()
        answers_read, answers_write = os.pipe()
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        theirs = [orders_read, answers_write, log]
        wanted = {"namespace": namespace, "uvloop": use_uvloop}
        try:
            socket.send_fds(self._socket, [json.dumps(wanted).encode()], theirs)
            pid = int(self._answer()["pid"])
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return Newborn(pid, orders_write, answers_read)


@dataclass(frozen=True, slots=True)
class Newborn:
    """A process that has just been forked, and this side's ends of its pipes."""

    pid: int
    orders: int
    answers: int


# --- inside the nursery ---------------------------------------------------------------------------


def preload(contenders: Sequence[str]) -> None:
    """Import what these contenders need, and what every actor needs."""
    from experiments.testbed import contenders as known

    for name in contenders:
        if not name.startswith("hivemind"):  # its processes begin as they would anywhere
            known.load(name)
    gc.collect()
    gc.freeze()  # what all have in common stays in shared pages


def serve(door: socket.socket) -> None:
    """Fork whoever is asked for, until nobody asks any more."""
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads != 1:
        door.send(json.dumps({"error": f"{num_threads} threads: cannot fork"}).encode())
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    door.send(json.dumps({"is": "ready"}).encode())
    while True:
        raw, descriptors, _, _ = socket.recv_fds(door, _MAX_MESSAGE_BYTES, 3)
        if not raw:
            return
        pid = os.fork()
        if pid == 0:
            door.close()
            be_born(json.loads(raw), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        door.send(json.dumps({"pid": pid}).encode())


def be_born(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Become an actor, in a session of its own. Does not return."""
    from experiments.testbed import actor

    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        os.setsid()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        random.seed()  # or everyone would make the same choices
        if wanted["namespace"]:
            kernel.enter(wanted["namespace"])
        actor.main(use_uvloop=wanted["uvloop"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    """Import, then serve."""
    preload(sys.argv[2:])
    with socket.socket(fileno=int(sys.argv[1])) as door:
        serve(door)


if __name__ == "__main__":
    main()
