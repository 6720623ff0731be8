"""The real trainer in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop

from zoonet.errors import ConfigError, NonFiniteLoss, TrainingError
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Sample, StepDone, Train, encode

LONG = 10_000  # slots: seconds of work, never finished here


def train(
    *slots: tuple[int, int],
    steps: int = LONG,
    is_fresh: bool = True,
    has_inner_state: bool = False,
) -> Train:
    return Train(
        round=1,
        slots=slots or ((0, 8),),
        steps=steps,
        num_carried=0,
        is_fresh=is_fresh,
        tokens_done=0,
        tokens_planned=1000,
        has_inner_state=has_inner_state,
    )


def buffers_of(job: Any) -> SharedBuffers:
    buffers = SharedBuffers.create(job.num_parameters)
    buffers.local_P[:] = job.initial_P
    buffers.global_P[:] = job.initial_P
    return buffers


def test_a_trainer_process_computes_what_an_inline_trainer_computes(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as near, buffers_of(job) as far:
            async with (
                TrainerProcess.open(job.start, far, nice=1) as process,
                InlineTrainer.open(job.start, near) as inline,
            ):
                assert process.device == inline.device == "cpu"
                for slots, has_inner in [((0, 5), False), ((9, 12), True)]:
                    command = train(slots, has_inner_state=has_inner)
                    there, here = await process.train(command), await inline.train(command)
                    assert there.slots == here.slots == (slots,)
                    assert there.tokens == here.tokens
                    assert there.loss == pytest.approx(here.loss, rel=1e-5)
                    np.testing.assert_allclose(far.local_P, near.local_P, atol=1e-5)
                    np.testing.assert_allclose(far.inner_N, near.inner_N, atol=1e-4)
                assert await process.evaluate() == await inline.evaluate()
                request = Sample(prompt="the ", num_tokens=9, temperature=0.0)
                assert await process.sample(request) == await inline.sample(request)

    uvloop.run(main())


def test_a_stop_returns_what_is_done_and_the_next_round_goes_on(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                reported = asyncio.Event()
                training = asyncio.create_task(
                    trainer.train(train((5, LONG)), lambda _: reported.set())
                )
                await reported.wait()
                await trainer.stop()
                trained = await training
                (done,) = trained.slots
                assert done[0] == 5
                assert 5 < done[1] < LONG
                assert trained.tokens == (done[1] - 5) * 64
                assert not np.array_equal(buffers.local_P, job.initial_P)
                assert buffers.inner_N[-1] == done[1] - 5
                await trainer.stop()  # nothing to stop
                assert (await trainer.train(train((0, 2)))).slots == ((0, 2),)

    uvloop.run(main())


def test_a_cancelled_round_leaves_the_buffers_to_the_caller(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                reported = asyncio.Event()
                training = asyncio.create_task(
                    trainer.train(train((0, LONG)), lambda _: reported.set())
                )
                await reported.wait()
                training.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await training
                assert np.array_equal(buffers.local_P, job.initial_P)
                assert (await trainer.train(train((0, 2)))).slots == ((0, 2),)

    uvloop.run(main())


def test_an_error_in_the_callback_reaches_the_caller_and_the_trainer_lives(job: Any) -> None:
    def refuse(step: StepDone) -> None:
        raise LookupError(step.steps)

    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                with pytest.raises(LookupError):
                    await trainer.train(train((0, LONG)), refuse)
                assert (await trainer.train(train((0, 2)))).slots == ((0, 2),)

    uvloop.run(main())


def test_a_killed_trainer_is_a_training_error_and_not_a_hang(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                with pytest.raises(TrainingError, match="exit code -9"):
                    await trainer.train(
                        train((0, LONG)), lambda _: os.kill(trainer.pid, signal.SIGKILL)
                    )
                with pytest.raises(TrainingError):
                    await trainer.evaluate()

    uvloop.run(main())


def test_the_trainer_ends_with_its_pipe_in_the_middle_of_a_round(job: Any) -> None:
    near, far = socket.socketpair()
    command = [sys.executable, "-m", "zoonet.training.trainer"]
    with buffers_of(job) as buffers, far, near:
        arguments = ["--pipe", str(far.fileno()), "--memory", str(buffers.fd)]
        with subprocess.Popen(command + arguments, pass_fds=(far.fileno(), buffers.fd)) as process:
            far.close()
            near.sendall(encode(job.start))
            assert near.recv(1)  # Ready
            near.sendall(encode(train((0, LONG))))
            near.close()
            assert process.wait(timeout=240) == 0
        assert np.array_equal(buffers.local_P, job.initial_P)


def test_a_bug_in_the_trainer_shows_its_traceback(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            buffers.inner_N[-1] = -1  # no optimizer leaves that
            async with TrainerProcess.open(job.start, buffers) as trainer:
                with pytest.raises(TrainingError, match=r"(?s)exit code 1.*Traceback.*inner state"):
                    await trainer.train(train(has_inner_state=True))

    uvloop.run(main())


def test_the_interrupt_key_does_not_end_the_trainer(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                os.kill(trainer.pid, signal.SIGINT)
                assert (await trainer.train(train((0, 2)))).slots == ((0, 2),)
                assert os.getsid(trainer.pid) != os.getsid(0)

    uvloop.run(main())


def test_the_trainer_has_no_secrets_and_no_network(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOONET_PASSPHRASE", "correct horse")

    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(job.start, buffers) as trainer:
                await trainer.train(train((0, 2)))
                process = psutil.Process(trainer.pid)
                assert "PATH" in process.environ()
                assert "ZOONET_PASSPHRASE" not in process.environ()
                assert process.net_connections("inet") == []

    uvloop.run(main())


def test_a_loss_that_is_no_number_is_an_error_and_changes_nothing(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            buffers.global_P[:] = np.nan
            async with TrainerProcess.open(job.start, buffers) as trainer:
                with pytest.raises(NonFiniteLoss, match="inner_lr"):
                    await trainer.train(train((0, 4)))
                buffers.global_P[:] = job.initial_P
                assert (await trainer.train(train((0, 2)))).slots == ((0, 2),)

    uvloop.run(main())


def test_a_job_that_cannot_be_loaded_says_why(make_job: Callable[..., Any]) -> None:
    async def main() -> None:
        job = make_job()
        os.unlink(job.start.train_path)
        with buffers_of(job) as buffers, pytest.raises(ConfigError, match="cannot read the tokens"):
            async with TrainerProcess.open(job.start, buffers):
                pass

    uvloop.run(main())
