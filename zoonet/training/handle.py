"""The node's side of the trainer process.

The node owns the buffers; the trainer may be restarted at will. One command runs at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

import zoonet
from zoonet import config
from zoonet.errors import (
    ConfigError,
    NonFiniteLoss,
    OutOfDeviceMemory,
    TrainingError,
    UnreadableSlot,
)
from zoonet.training.buffers import SharedBuffers
from zoonet.training.export import Layout
from zoonet.training.messages import (
    HEADER_BYTES,
    Answer,
    Command,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Merge,
    Merged,
    Ready,
    Sample,
    Sampled,
    Start,
    StepDone,
    Stop,
    Train,
    Trained,
    decode_event,
    encode,
    payload_size,
)

logger = logging.getLogger(__name__)

OnStep = Callable[[StepDone], None]
AnswerT = TypeVar("AnswerT", Ready, Trained, Merged, Evaluated, Sampled)

_GOODBYE_S = 2.0  # between closing the pipe and killing the process
_STDERR_LINES = 30


class Trainer(Protocol):
    """What a node needs of a trainer, in its own process or in this one.

    Every method raises WorkLost, OutOfDeviceMemory, TrainingError or ConfigError. A cancelled
    call returns once the step under way is done; the buffers are then the caller's again, and
    unchanged.
    """

    @property
    def device(self) -> str: ...

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors within the flat vector, in order."""
        ...

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        """Train until what the command asks for is there; leaves theta_local in `local_P`.

        Then goes on with the command's other slots by itself. A call that was cancelled leaves
        nothing behind: the next command has to be fresh.
        """
        ...

    async def merge(self, *, is_merged: bool) -> None:
        """Add `local_P`, which must not change meanwhile, to the parameters being trained."""
        ...

    async def stop(self) -> None:
        """Let the `train` under way return what it has done so far. No effect otherwise."""
        ...

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        """Measure `global_P`, which must not change meanwhile, on held-out data (0: all)."""
        ...

    async def sample(self, request: Sample) -> str:
        """Continue a text with `global_P`, which must not change meanwhile."""
        ...


class TrainerProcess:
    """A trainer in a process of its own. Use `open`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._is_training = False
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._stderr_task = asyncio.create_task(self._keep_stderr())
        self.device = ""
        self.layout: Layout = ()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, start: Start, buffers: SharedBuffers, *, nice: int = 0
    ) -> AsyncIterator[TrainerProcess]:
        """Spawn a trainer and wait until it holds the model; end it on leaving.

        It runs in a session of its own, so that Ctrl-C does not reach it. Raises ConfigError,
        OutOfDeviceMemory, or TrainingError with the last lines it wrote.
        """
        trainer, ready = await cls._load(start, buffers, nice)
        try:
            trainer.device = ready.device
            trainer.layout = ready.layout
            logger.info("trainer ready pid=%s device=%s", trainer.pid, ready.device)
            if ready.warning:
                logger.warning("trainer pid=%s %s", trainer.pid, ready.warning)
            yield trainer
        finally:
            await trainer._close()

    @classmethod
    async def _load(
        cls, start: Start, buffers: SharedBuffers, nice: int
    ) -> tuple[TrainerProcess, Ready]:
        """Spawn a trainer that holds the model: with several ranks, one whose batch fits on all.

        There the trainer cannot cut its batch itself, as the ranks are in the middle of a step.
        """
        while True:
            trainer = await cls._spawn(buffers, nice)
            try:
                return trainer, await trainer._request(start, Ready)
            except BaseException as error:
                await trainer._close()
                size = smaller_micro_batch(start) if isinstance(error, OutOfDeviceMemory) else 0
                if not size:
                    raise
            logger.info("trainer starts anew, out of memory: micro_batch=%d", size)
            start = msgspec.structs.replace(start, micro_batch_size=size)

    @classmethod
    async def _spawn(cls, buffers: SharedBuffers, nice: int) -> TrainerProcess:
        near, far = socket.socketpair()
        with far:
            arguments = ("--pipe", far.fileno(), "--memory", buffers.fd, "--nice", nice)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "zoonet.training.trainer"),
                *map(str, arguments),
                pass_fds=(far.fileno(), buffers.fd),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=_environment(),
            )
        near.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=near)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Of the trainer's process."""
        return self._process.pid

    async def train(self, command: Train, on_step: OnStep | None = None) -> Trained:
        return await self._request(command, Trained, on_step)

    async def merge(self, *, is_merged: bool) -> None:
        await self._request(Merge(is_merged=is_merged), Merged)

    async def stop(self) -> None:
        if self._is_training:
            self._writer.write(encode(Stop()))

    async def evaluate(self, max_tokens: int = 0) -> Evaluated:
        return await self._request(Evaluate(max_tokens=max_tokens), Evaluated)

    async def sample(self, request: Sample) -> str:
        return (await self._request(request, Sampled)).text

    async def _request(
        self, command: Command, answer_type: type[AnswerT], on_step: OnStep | None = None
    ) -> AnswerT:
        async with self._lock:
            self._is_training = isinstance(command, Train)
            self._writer.write(encode(command))
            try:
                answer = await self._answer(on_step)
            except TrainingError:
                raise
            except BaseException:  # cancelled, or the callback failed: leave the pipe in step
                await self._abandon(command)
                raise
            finally:
                self._is_training = False
        if isinstance(answer, Failed):
            raise error_of(answer)
        if not isinstance(answer, answer_type):
            raise RuntimeError(f"{type(answer).__name__} answered {type(command).__name__}")
        return answer

    async def _answer(self, on_step: OnStep | None) -> Answer:
        while True:
            event = await self._receive()
            if not isinstance(event, StepDone):
                return event
            if on_step is not None:
                on_step(event)

    async def _abandon(self, command: Command) -> None:
        """Have the command end without touching the buffers, and drop its answer."""
        if isinstance(command, Start):
            return self._kill()
        self._writer.write(encode(Stop(is_discarded=True)))
        try:
            await self._answer(None)
        except TrainingError:
            pass  # it is dead: nothing writes to the buffers any more
        except BaseException:  # cancelled again: nothing may be left that writes to the buffers
            self._kill()
            raise

    async def _receive(self) -> Event:
        try:
            header = await self._reader.readexactly(HEADER_BYTES)
            return decode_event(await self._reader.readexactly(payload_size(header)))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise await self._death() from error

    async def _death(self) -> TrainingError:
        """Describe how the process ended, once it has."""
        code = await self._reap()
        lines = "\n".join(self._stderr) or "it wrote nothing"
        return TrainingError(f"the trainer process ended (exit code {code}): {lines}")

    async def _keep_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode("utf-8", errors="replace").rstrip()
            self._stderr.append(text)
            logger.debug("trainer pid=%s %s", self._process.pid, text)

    async def _close(self) -> None:
        self._writer.close()
        await self._reap()

    async def _reap(self) -> int:
        """Wait for the process's end, kill it where a long step delays that: its exit code."""
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self._kill()
            code = await self._process.wait()
            await asyncio.wait([self._stderr_task])
        return code

    def _kill(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it ended by itself just now
                self._process.kill()


def smaller_micro_batch(start: Start) -> int:
    """Samples at a time of each of several ranks after a size that did not fit; 0: none left."""
    num_ranks = len(start.device.split(","))
    batch_size = config.decode(start.prepared).training.batch_size
    tried = min(start.micro_batch_size or batch_size, -(-batch_size // num_ranks))
    return (tried + 1) // 2 if num_ranks > 1 and tried > 1 else 0


def error_of(failed: Failed) -> TrainingError | ConfigError:
    """Return the exception that a trainer's failure stands for."""
    match failed.kind:
        case "non-finite":
            return NonFiniteLoss(failed.message, slots=failed.slots)
        case "unreadable":
            return UnreadableSlot(failed.message, slots=failed.slots)
        case "out-of-memory":
            return OutOfDeviceMemory(failed.message)
        case "config":
            return ConfigError(failed.message)
        case "training":
            return TrainingError(failed.message)


def _environment() -> dict[str, str]:
    """The node's environment without its secrets; the same zoonet; no look at any hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZOONET_")}
    package = str(Path(zoonet.__file__).parent.parent)
    paths = [package, *filter(None, [kept.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return kept | offline | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
