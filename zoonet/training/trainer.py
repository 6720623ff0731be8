"""The trainer process: `python -m zoonet.training.trainer --pipe FD --memory FD`.

Owns the device and runs the job's recipe. It has no keys, no network and no event loop, and ends
when its pipe closes, even in the middle of a round.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from zoonet import config
from zoonet.errors import (
    ConfigError,
    NonFiniteLoss,
    OutOfDeviceMemory,
    TrainingError,
    UnreadableSlot,
)
from zoonet.training.buffers import SharedBuffers
from zoonet.training.channel import Channel, PipeClosed
from zoonet.training.messages import (
    Answer,
    Command,
    Evaluate,
    Evaluated,
    Failed,
    Merge,
    Merged,
    Ready,
    Sample,
    Sampled,
    Start,
    Stop,
    Train,
    Trained,
)
from zoonet.training.session import TrainingSession
from zoonet.training.workload import Workload

_PR_SET_PDEATHSIG = 1


class Trainer:
    """Answers the commands of one node until the pipe closes."""

    def __init__(self, channel: Channel, buffers: SharedBuffers, session: TrainingSession) -> None:
        self._channel = channel
        self._buffers = buffers
        self._session = session
        self._work = Workload(session, buffers, time.monotonic)
        self._stop: Stop | None = None

    def serve(self) -> None:
        """Answer commands, and train ahead between them. Raises PipeClosed at the end."""
        while True:
            command = self._channel.poll() if self._work.is_more else self._channel.receive()
            if command is None:
                self._work.step_ahead()
            elif not isinstance(command, Stop):  # else it crossed what it wanted to hasten
                self._stop = None
                self._channel.send(self._answer(command))

    def _answer(self, command: Command) -> Answer:
        try:
            match command:
                case Train():
                    return self._train(command)
                case Merge(is_merged=is_merged):
                    self._work.merge(is_merged=is_merged)
                    return Merged()
                case Evaluate():
                    with self._work.aside():
                        loss, tokens = self._session.evaluate(
                            self._buffers.global_P,
                            max_tokens=command.max_tokens,
                            is_stopped=self._is_stopped,
                        )
                    return Evaluated(loss=loss, tokens=tokens)
                case Sample():
                    return Sampled(text=self._session.sample(self._buffers.global_P, command))
                case _:
                    raise RuntimeError(f"{type(command).__name__} is not expected here")
        except (TrainingError, ConfigError) as error:
            return failure_of(error)

    def _train(self, command: Train) -> Answer:
        try:
            self._work.take_on(command)
            while not self._is_stopped() and not self._work.is_due:
                self._work.step()
                if (progress := self._work.progress()) is not None:
                    self._channel.send(progress)
            if self._stop is None or not self._stop.is_discarded:
                return self._work.report()
        except (TrainingError, ConfigError):
            self._work.abandon()
            raise
        self._work.abandon()
        return Trained(round=command.round, slots=(), loss=0.0, tokens=0, seconds=0.0)

    def _is_stopped(self) -> bool:
        self._stop = self._stop or self._channel.pending_stop()
        return self._stop is not None


def failure_of(error: TrainingError | ConfigError) -> Failed:
    """Return the event that tells the node of an error."""
    match error:
        case NonFiniteLoss():
            return Failed(kind="non-finite", message=str(error), slots=error.slots)
        case UnreadableSlot():
            return Failed(kind="unreadable", message=str(error), slots=error.slots)
        case OutOfDeviceMemory():
            return Failed(kind="out-of-memory", message=str(error))
        case ConfigError():
            return Failed(kind="config", message=str(error))
        case _:
            return Failed(kind="training", message=str(error))


def run(pipe_fd: int, memory_fd: int) -> None:
    """Load the job that the first command names, then answer commands. Raises PipeClosed."""
    channel = Channel(socket.socket(fileno=pipe_fd))
    start = channel.receive()
    if not isinstance(start, Start):
        raise RuntimeError(f"{type(start).__name__} arrived before Start")
    torch.set_num_threads(start.num_threads)
    with _reported_failures(channel):
        session = TrainingSession(start)
    num_parameters = config.decode(start.prepared).num_parameters
    with session, SharedBuffers.attach(memory_fd, num_parameters) as buffers:
        ready = Ready(
            device=str(session.device),
            num_parameters=num_parameters,
            layout=session.layout,
            warning=session.warning,
        )
        channel.send(ready)
        Trainer(channel, buffers, session).serve()


@contextmanager
def _reported_failures(channel: Channel) -> Iterator[None]:
    """Tell the node of an expected failure to load, and end."""
    try:
        yield
    except (TrainingError, ConfigError) as error:
        channel.send(failure_of(error))
        raise PipeClosed from error


def _die_with_parent() -> None:
    """Let the kernel end this process with its parent (Linux), however long a step takes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point of the spawned process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(arguments.nice)
    with suppress(PipeClosed):
        run(arguments.pipe, arguments.memory)
    os._exit(0)  # nothing is left to save, and taking torch apart costs most of a second


if __name__ == "__main__":
    main()
