"""The product's trainer with a virtual accelerator, in a thread in place of a process.

Both ends of the pipe are the product's own. It is a thread because eight more processes that
import torch would be too much for two cores; its waiting and its arithmetic release the lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import torch

from experiments.training.accelerator import Accelerator
from zoonet import config
from zoonet.training.buffers import SharedBuffers
from zoonet.training.channel import Channel, PipeClosed
from zoonet.training.handle import OnStep, TrainerProcess
from zoonet.training.messages import Ready, Start, Train, Trained
from zoonet.training.session import TrainingSession
from zoonet.training.trainer import Trainer

log = logging.getLogger(__name__)


class PacedSession(TrainingSession):
    """Each inner step takes its time on the accelerator."""

    def __init__(self, start: Start, accelerator: Accelerator) -> None:
        super().__init__(start)
        self._accelerator = accelerator

    def step(self, slot: int, progress: float, drift: float = 0.0) -> None:
        with self._accelerator.step():
            super().step(slot, progress, drift)


class PacedTrainer(TrainerProcess):
    """The node's end. `answers` are all that it has been told of training. Use `open_paced`."""

    answers: list[Trained]

    @classmethod
    @asynccontextmanager
    async def open_paced(
        cls, start: Start, buffers: SharedBuffers, accelerator: Accelerator
    ) -> AsyncIterator[PacedTrainer]:
        """Start the thread and wait until it holds the model; end it on leaving."""
        near, far = socket.socketpair()
        near.setblocking(False)
        thread = _TrainerThread(far, buffers, accelerator)
        reader, writer = await asyncio.open_unix_connection(sock=near)
        trainer = cls(cast(Process, thread), reader, writer)
        trainer.answers = []
        try:
            ready = await trainer._request(start, Ready)
            trainer.device, trainer.layout = ready.device, ready.layout
            yield trainer
        finally:
            await trainer._close()

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        trained = await super().train(command, on_step)
        self.answers.append(trained)
        return trained


class _TrainerThread:
    """A thread that looks like a process to who ends it."""

    def __init__(
        self, pipe: socket.socket, buffers: SharedBuffers, accelerator: Accelerator
    ) -> None:
        self.pid = os.getpid()
        self.returncode: int | None = None
        self.stderr = asyncio.StreamReader()
        self.stderr.feed_eof()
        self._pipe = pipe
        memory_fd, num_parameters = os.dup(buffers.fd), buffers.num_parameters

        def run() -> None:
            try:
                serve(Channel(pipe), memory_fd, num_parameters, accelerator)
            except PipeClosed:
                pass
            except Exception:
                log.exception("the trainer's thread has failed")
            finally:
                self.returncode = 0
                pipe.close()

        self._thread = threading.Thread(target=run, name="trainer", daemon=True)
        self._thread.start()

    async def wait(self) -> int:
        """Wait for its end."""
        await asyncio.to_thread(self._thread.join)
        return 0

    def kill(self) -> None:
        """A thread cannot be killed; without its pipe it ends after its step."""
        self._pipe.shutdown(socket.SHUT_RDWR)


def serve(channel: Channel, memory_fd: int, num_parameters: int, accelerator: Accelerator) -> None:
    """What `zoonet.training.trainer.run` does, with a paced session. Raises PipeClosed."""
    start = channel.receive()
    assert isinstance(start, Start)
    torch.set_num_threads(1)
    assert config.decode(start.prepared).num_parameters == num_parameters
    session = PacedSession(start, accelerator)
    with session, SharedBuffers.attach(memory_fd, num_parameters) as buffers:
        ready = Ready(
            device=str(session.device), num_parameters=num_parameters, layout=session.layout
        )
        channel.send(ready)
        Trainer(channel, buffers, session).serve()
