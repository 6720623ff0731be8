"""The trainer process: `python -m zoonet.training.trainer --pipe FD --memory FD`.

Owns the device and runs the job's recipe. It has no keys, no network and no event loop, and ends
when its pipe closes, even in the middle of a round.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
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
from zoonet.training.parent import die_with_parent
from zoonet.training.session import TrainingSession, rank_devices
from zoonet.training.workload import Workload


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
        session = open_session(start, channel, memory_fd)
    num_parameters = config.decode(start.prepared).num_parameters
    with session, SharedBuffers.attach(memory_fd, num_parameters) as buffers:
        ready = Ready(
            device=str(session.device) if is_alone(start) else start.device,
            num_parameters=num_parameters,
            layout=session.layout,
            warning=session.warning,
        )
        channel.send(ready)
        Trainer(channel, buffers, session).serve()


def open_session(start: Start, channel: Channel, memory_fd: int) -> TrainingSession:
    """Load the job on the devices that `start` names. Raises ConfigError, OutOfDeviceMemory."""
    if is_alone(start):
        return TrainingSession(start)
    if start.is_compiled:
        raise ConfigError("--compile works with one device so far; leave one of the two out")
    from zoonet.training import crew  # for several devices alone

    def on_death(rank: int, code: int) -> None:
        """End with the member: this process may wait for it in the middle of a step."""
        if code == crew.OUT_OF_MEMORY and not is_loaded.is_set():
            reason = f"rank {rank} has too little memory"
            channel.send(Failed(kind="out-of-memory", message=reason))
        print(f"rank {rank} ended with exit code {code}", file=sys.stderr, flush=True)
        os._exit(1)

    is_loaded = threading.Event()
    session = crew.LedSession(start, crew.Crew(start, memory_fd, on_death))
    is_loaded.set()
    return session


def is_alone(start: Start) -> bool:
    """Tell whether one device holds the whole model."""
    return len(rank_devices(start.device)) == 1


@contextmanager
def _reported_failures(channel: Channel) -> Iterator[None]:
    """Tell the node of an expected failure to load, and end."""
    try:
        yield
    except (TrainingError, ConfigError) as error:
        channel.send(failure_of(error))
        raise PipeClosed from error


def main() -> None:
    """Entry point of the spawned process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(arguments.nice)
    code = 0
    try:
        with suppress(PipeClosed):
            run(arguments.pipe, arguments.memory)
    except BaseException:  # nothing is above: what it is must be seen before `_exit`
        traceback.print_exc()
        code = 1
    os._exit(code)  # nothing is left to save, and taking torch apart costs most of a second


if __name__ == "__main__":
    main()
