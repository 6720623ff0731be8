"""Several devices inside one peer: the trainer leads other processes, one for each further device.

The trainer is rank 0. Whatever its session is asked for, each member's session does as well, at the
same time, over vectors in the same shared memory; what they have to agree on they compute together
(`zoonet.training.ranks`). They end with the trainer, and the trainer ends with the first of them:
the node then starts all anew.

::

    python -m zoonet.training.crew --pipe FD --memory FD --store FD
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Final

import msgspec
import torch

from zoonet import config
from zoonet.errors import ConfigError, OutOfDeviceMemory, TrainingError
from zoonet.training.buffers import SharedBuffers
from zoonet.training.messages import Evaluate, Message, Sample, Start
from zoonet.training.parent import die_with_parent
from zoonet.training.ranks import Group
from zoonet.training.session import TrainingSession, Vector, pick_device, rank_devices

OUT_OF_MEMORY: Final = 3  # exit code of a member


class Join(Message, frozen=True, kw_only=True, tag="join"):
    """Load the job as this rank. Sent once, first."""

    start: Start
    rank: int


class Begin(Message, frozen=True, kw_only=True, tag="begin"):
    """Start from `global_P` and `momentum_P`, and from `inner_N` or nothing."""

    has_inner_state: bool


class Step(Message, frozen=True, kw_only=True, tag="step"):
    """Train a slot. The only order that is not confirmed: the step itself keeps ranks together."""

    slot: int
    progress: float
    drift: float


class TakeLoss(Message, frozen=True, kw_only=True, tag="loss"):
    """Add up the loss."""


class Shift(Message, frozen=True, kw_only=True, tag="shift"):
    """Move by `local_P`, with `momentum_P` from now on."""


class Reload(Message, frozen=True, kw_only=True, tag="reload"):
    """Take `global_P` and `momentum_P`."""


class GoOver(Message, frozen=True, kw_only=True, tag="over"):
    """Take `local_P`."""


class FinishRound(Message, frozen=True, kw_only=True, tag="finish"):
    """Write to `local_P` and `inner_N`."""


Order = Begin | Step | TakeLoss | Shift | Reload | GoOver | FinishRound | Evaluate | Sample

_ENCODER = msgspec.msgpack.Encoder()
_JOIN = msgspec.msgpack.Decoder(Join)
_ORDERS = msgspec.msgpack.Decoder(Order)


class Crew:
    """The members of a trainer. The kernel ends them with it."""

    def __init__(self, start: Start, memory_fd: int, on_death: Callable[[int, int], None]) -> None:
        """Spawn the other ranks. `on_death(rank, exit code)` runs in a thread of its own."""
        self._on_death = on_death
        self._store_fd = _rendezvous_file()
        self._pipes: list[Connection] = []
        for rank in range(1, len(rank_devices(start.device))):
            self._spawn(Join(start=start, rank=rank), memory_fd)

    def _spawn(self, join: Join, memory_fd: int) -> None:
        near, far = Pipe()
        with far:
            fds = {"--pipe": far.fileno(), "--memory": memory_fd, "--store": self._store_fd}
            arguments = [str(each) for pair in fds.items() for each in pair]
            process = subprocess.Popen(
                (sys.executable, "-P", "-m", "zoonet.training.crew", *arguments),
                pass_fds=tuple(fds.values()),
                stdin=subprocess.DEVNULL,
            )
        near.send_bytes(_ENCODER.encode(join))
        self._pipes.append(near)
        threading.Thread(target=self._watch, args=(join.rank, process), daemon=True).start()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self._on_death(rank, process.wait())

    def meet(self, start: Start) -> Group:
        """Wait until all are there: the trainer's rank."""
        return _group(start, 0, self._store_fd)

    def tell(self, order: Order) -> None:
        """Have all members do something."""
        message = _ENCODER.encode(order)
        for pipe in self._pipes:
            pipe.send_bytes(message)

    def confirm(self) -> None:
        """Return when all members have done what they were told last. EOFError: one is dead."""
        for pipe in self._pipes:
            pipe.recv_bytes()


class LedSession(TrainingSession):
    """The trainer's session where it has members: they do what it does."""

    def __init__(self, start: Start, crew: Crew) -> None:
        super().__init__(start, crew.meet(start))
        self._crew = crew

    @contextmanager
    def _together(self, order: Order) -> Iterator[None]:
        """Have the members do the same meanwhile, and wait for them."""
        self._crew.tell(order)
        try:
            yield
        except OutOfDeviceMemory as error:  # the others are in the middle of it: start all anew
            raise RuntimeError(f"rank 0: {error}") from error
        except (TrainingError, ConfigError):
            self._confirm(order)
            raise
        self._confirm(order)

    def _confirm(self, order: Order) -> None:
        if not isinstance(order, Step):
            self._crew.confirm()

    def begin(
        self, theta_P: Vector, inner_N: Vector | None, momentum_P: Vector | None = None
    ) -> None:
        with self._together(Begin(has_inner_state=inner_N is not None)):
            super().begin(theta_P, inner_N, momentum_P)

    def step(self, slot: int, progress: float, drift: float = 0.0) -> None:
        self.read(slot)  # what cannot be read nobody starts on
        with self._together(Step(slot=slot, progress=progress, drift=drift)):
            super().step(slot, progress, drift)

    def take_loss(self) -> float:
        with self._together(TakeLoss()):
            return super().take_loss()

    def shift(self, by_P: Vector, momentum_P: Vector | None = None) -> None:
        with self._together(Shift()):
            super().shift(by_P, momentum_P)

    def reload(self, theta_P: Vector, momentum_P: Vector | None = None) -> None:
        with self._together(Reload()):
            super().reload(theta_P, momentum_P)

    def go_over(self, theta_P: Vector) -> None:
        with self._together(GoOver()):
            super().go_over(theta_P)

    def finish_round(self, theta_P: Vector, inner_N: Vector) -> None:
        with self._together(FinishRound()):
            super().finish_round(theta_P, inner_N)

    def evaluate(
        self, theta_P: Vector, *, max_tokens: int, is_stopped: Callable[[], bool]
    ) -> tuple[float, int]:
        with self._together(Evaluate(max_tokens=max_tokens)):
            is_stopped = self.agreed(is_stopped)
            return super().evaluate(theta_P, max_tokens=max_tokens, is_stopped=is_stopped)

    def sample(self, theta_P: Vector, request: Sample) -> str:
        with self._together(request):
            return super().sample(theta_P, request)


class Member:
    """A rank other than 0: does what it is told until the pipe closes."""

    def __init__(self, session: TrainingSession, buffers: SharedBuffers, pipe: Connection) -> None:
        self._session = session
        self._buffers = buffers
        self._pipe = pipe

    def serve(self) -> None:
        """Obey. Raises EOFError at the end, TrainingError for what failed on this rank alone."""
        while True:
            order: Order = _ORDERS.decode(self._pipe.recv_bytes())
            if isinstance(order, Step):
                self._session.step(order.slot, order.progress, order.drift)
                continue
            try:
                self._obey(order)
            except OutOfDeviceMemory:
                raise
            except (TrainingError, ConfigError):
                pass  # rank 0 has met the same, and tells the node
            self._pipe.send_bytes(b"done")

    def _obey(self, order: Order) -> None:
        session, buffers = self._session, self._buffers
        match order:
            case Begin(has_inner_state=has_inner_state):
                inner_N = buffers.inner_N if has_inner_state else None
                session.begin(buffers.global_P, inner_N, buffers.momentum_P)
            case TakeLoss():
                session.take_loss()
            case Shift():
                session.shift(buffers.local_P, buffers.momentum_P)
            case Reload():
                session.reload(buffers.global_P, buffers.momentum_P)
            case GoOver():
                session.go_over(buffers.local_P)
            case FinishRound():
                session.finish_round(buffers.local_P, buffers.inner_N)
            case Evaluate(max_tokens=most):
                is_stopped = session.agreed(lambda: False)
                session.evaluate(buffers.global_P, max_tokens=most, is_stopped=is_stopped)
            case Sample():
                session.sample(buffers.global_P, order)


def _group(start: Start, rank: int, store_fd: int) -> Group:
    names = rank_devices(start.device)
    path = f"/proc/self/fd/{store_fd}"
    return Group(rank, len(names), pick_device(names[rank]), path)


def _rendezvous_file() -> int:
    """A nameless file in which the ranks find each other; only who inherits it can open it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("zoonet-ranks")
    raise ConfigError("several devices in one peer need Linux; name one with --device")


def _run(pipe: Connection, memory_fd: int, store_fd: int) -> None:
    join = _JOIN.decode(pipe.recv_bytes())
    torch.set_num_threads(join.start.num_threads)
    session = TrainingSession(join.start, _group(join.start, join.rank, store_fd))
    num_parameters = config.decode(join.start.prepared).num_parameters
    with session, SharedBuffers.attach(memory_fd, num_parameters) as buffers:
        Member(session, buffers, pipe).serve()


def main() -> None:
    """Entry point of a member's process."""
    parser = argparse.ArgumentParser()
    for name in ("--pipe", "--memory", "--store"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 0
    try:
        with suppress(EOFError):
            _run(Connection(arguments.pipe), arguments.memory, arguments.store)
    except OutOfDeviceMemory:
        code = OUT_OF_MEMORY
    except BaseException:  # nothing is above: what it is must be seen before `_exit`
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # a connection to a dead rank could keep an ordinary end waiting


if __name__ == "__main__":
    main()
