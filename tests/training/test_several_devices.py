"""Two ranks inside one trainer train what one does (gloo, on CPU)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import torch
import uvloop

from zoonet.errors import ConfigError, TrainingError
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess, smaller_micro_batch
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Sample, Start, Train

TWO = "cpu,cpu"
ON_TWO_GPUS = (
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
)
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {"num_layers": 2},
    "embedding": {"kind": "embedding"},
    "transformers": {
        "kind": "transformers",
        "hf_config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        },
    },
}


def train(*slots: tuple[int, int], is_fresh: bool = True, has_inner_state: bool = False) -> Train:
    return Train(
        round=1,
        slots=slots,
        steps=100_000,
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
    buffers.momentum_P[:] = 0.01  # moves nothing unless it is spread
    return buffers


def on_two(start: Start, **changes: Any) -> Start:
    return msgspec.structs.replace(start, **{"device": TWO, **changes})


@pytest.mark.parametrize(
    ("kind", "training"),
    [
        ("gpt", {"grad_clip": 0.0}),
        ("gpt", {"optimizer": "muon", "batch_size": 3, "activation_checkpointing": True}),
        ("transformers", {"optimizer": "muon"}),
        ("embedding", {"task": "embedding"}),
        ("gpt", {"outer_momentum_spread": True}),
    ],
)
@pytest.mark.parametrize("devices", [TWO, pytest.param("cuda:0,cuda:1", marks=ON_TWO_GPUS)])
def test_two_ranks_train_what_one_device_trains(
    make_job: Callable[..., Any], kind: str, training: dict[str, Any], devices: str
) -> None:
    if kind == "transformers":
        pytest.importorskip("transformers")
    job = make_job(MODELS[kind], **training)

    async def main() -> None:
        with buffers_of(job) as near, buffers_of(job) as far:
            async with (
                TrainerProcess.open(on_two(job.start, device=devices), far) as two,
                InlineTrainer.open(job.start, near) as one,
            ):
                assert two.layout == one.layout
                assert two.device == devices
                for command in (
                    train((0, 5)),
                    train((9, 12), has_inner_state=True),
                    train((12, 14), is_fresh=False),
                ):
                    there, here = await two.train(command), await one.train(command)
                    assert there.slots == here.slots
                    assert there.loss == pytest.approx(here.loss, rel=1e-5)
                    np.testing.assert_allclose(far.local_P, near.local_P, atol=2e-5)
                    np.testing.assert_allclose(far.inner_N, near.inner_N, atol=1e-5)
                    assert np.abs(far.local_P - job.initial_P).max() > 1e-3
                for buffers, trainer in ((far, two), (near, one)):  # what a site has come to
                    buffers.local_P[:] = 0.5 * job.initial_P
                    over = msgspec.structs.replace(train(is_fresh=False), takes_local=True)
                    await trainer.train(over)
                    np.testing.assert_allclose(buffers.local_P, 0.5 * job.initial_P, atol=1e-6)
                for buffers, trainer in ((far, two), (near, one)):
                    buffers.local_P[:] = 0.125
                    await trainer.merge(is_merged=False)
                    await trainer.train(train(is_fresh=False))
                np.testing.assert_allclose(far.local_P, near.local_P, atol=2e-5)
                there_, here_ = await two.evaluate(), await one.evaluate()
                assert there_.tokens == here_.tokens
                assert there_.loss == pytest.approx(here_.loss, rel=1e-5)
                await two.train(train(is_fresh=False))
                np.testing.assert_allclose(far.local_P, near.local_P, atol=2e-5)
                if kind != "embedding":
                    request = Sample(prompt="the ", num_tokens=9, temperature=0.0)
                    assert await two.sample(request) == await one.sample(request)

    uvloop.run(main())


def test_what_the_ranks_hold_together_is_written_down_to_the_bit(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            rng = np.random.default_rng(0)
            inner_N = rng.random(buffers.inner_N.size, np.float32)
            inner_N[-1] = 5
            buffers.inner_N[:] = inner_N
            buffers.local_P[:] = 0.0
            async with TrainerProcess.open(on_two(job.start), buffers) as trainer:
                buffers.inner_N[:] = inner_N
                await trainer.train(train(has_inner_state=True))
                assert np.array_equal(buffers.local_P, job.initial_P)
                assert np.array_equal(buffers.inner_N, inner_N)

    uvloop.run(main())


def test_smaller_micro_batches_give_the_same_step(job: Any) -> None:
    async def main() -> None:
        thetas = []
        for size in (0, 1):
            with buffers_of(job) as buffers:
                start = on_two(job.start, micro_batch_size=size)
                async with TrainerProcess.open(start, buffers) as trainer:
                    await trainer.train(train((0, 3)))
                    thetas.append(buffers.local_P.copy())
        np.testing.assert_allclose(*thetas, atol=1e-5)

    uvloop.run(main())


def test_a_batch_that_does_not_fit_on_a_rank_is_cut_for_all_until_one_sample_is_left(
    make_job: Callable[..., Any],
) -> None:
    start = on_two(make_job(batch_size=9).start)
    sizes = []
    while size := smaller_micro_batch(start):
        sizes.append(size)
        start = msgspec.structs.replace(start, micro_batch_size=size)
    assert sizes == [3, 2, 1]
    assert smaller_micro_batch(make_job().start) == 0, "a device alone cuts its batch itself"


def members_of(trainer: TrainerProcess) -> list[psutil.Process]:
    return psutil.Process(trainer.pid).children(recursive=True)


@pytest.mark.parametrize("victim", ["member", "trainer", "nobody"])
def test_ranks_end_together_and_leave_no_process_behind(job: Any, victim: str) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(on_two(job.start), buffers) as trainer:
                processes = [psutil.Process(trainer.pid), *members_of(trainer)]
                assert len(processes) == 2
                if victim != "nobody":
                    begun = asyncio.Event()
                    work = asyncio.ensure_future(
                        trainer.train(train((0, 9999)), lambda _: begun.set())
                    )
                    await begun.wait()
                    os.kill(processes[victim == "member"].pid, signal.SIGKILL)
                    ended = r"rank 1 ended" if victim == "member" else r"exit code -9"
                    with pytest.raises(TrainingError, match=ended):
                        await work
            _, alive = psutil.wait_procs(processes, timeout=10)
            assert not alive

    uvloop.run(main())


def test_the_ranks_listen_on_loopback_alone(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(on_two(job.start), buffers) as trainer:
                for process in (psutil.Process(trainer.pid), *members_of(trainer)):
                    for connection in process.net_connections("inet"):
                        assert connection.laddr.ip in ("127.0.0.1", "::1")

    uvloop.run(main())


def test_what_does_not_go_together_is_refused(job: Any) -> None:
    async def main() -> None:
        with buffers_of(job) as buffers:
            start = on_two(job.start, is_compiled=True)
            with pytest.raises(ConfigError, match="--compile works with one device"):
                async with TrainerProcess.open(start, buffers):
                    pass

    uvloop.run(main())
