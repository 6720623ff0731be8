"""What a trainer does on a GPU; where there is none, what can be said of a CPU as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import uvloop

from zoonet.errors import OutOfDeviceMemory
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess
from zoonet.training.messages import Start, Train

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
on_gpu = [pytest.mark.gpu, NEEDS_GPU]
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def on(device: str, start: Start, **changes: Any) -> Start:
    return msgspec.structs.replace(start, device=device, **changes)


def buffers_of(job: Any) -> SharedBuffers:
    buffers = SharedBuffers.create(job.num_parameters)
    buffers.local_P[:] = job.initial_P
    buffers.global_P[:] = job.initial_P
    return buffers


def train(stop: int) -> Train:
    slots = ((0, stop),)
    return Train(
        round=1,
        slots=slots,
        steps=stop,
        num_carried=0,
        tokens_done=0,
        tokens_planned=1000,
        is_fresh=True,
        has_inner_state=False,
    )


@each_device
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_job_in_mixed_precision_learns(
    make_job: Callable[..., Any], device: str, optimizer: str
) -> None:
    job = make_job({"width": 32}, precision="bf16", optimizer=optimizer)

    async def main() -> None:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(on(device, job.start), buffers) as trainer:
                assert trainer.device.partition(":")[0] == device
                before = await trainer.evaluate()
                trained = await trainer.train(train(60))
                assert trained.slots == ((0, 60),)
                assert buffers.local_P.dtype == np.float32
                assert buffers.inner_N[-1] == 60
                buffers.global_P[:] = buffers.local_P
                after = await trainer.evaluate()
                assert after.loss < before.loss - 0.5

    uvloop.run(main())


@pytest.mark.gpu
@NEEDS_GPU
def test_a_gpu_computes_what_a_cpu_does(make_job: Callable[..., Any]) -> None:
    job = make_job({"width": 32})

    async def theta_on(device: str) -> np.ndarray:
        with buffers_of(job) as buffers:
            async with TrainerProcess.open(on(device, job.start), buffers) as trainer:
                await trainer.train(train(20))
                moved: np.ndarray = buffers.local_P - job.initial_P
                return moved

    there, here = uvloop.run(theta_on("cuda")), uvloop.run(theta_on("cpu"))
    assert np.linalg.norm(there - here) <= 1e-2 * np.linalg.norm(here)


@pytest.mark.gpu
@NEEDS_GPU
def test_a_share_of_the_gpu_in_which_no_sample_fits_is_out_of_memory(
    make_job: Callable[..., Any],
) -> None:
    job = make_job({"width": 256, "num_layers": 4, "context": 512}, batch_size=8)
    total = torch.cuda.get_device_properties(0).total_memory
    few = 4.3 * 4 * job.num_parameters / total  # the state alone takes 4 copies

    async def main() -> None:
        with buffers_of(job) as buffers:
            start = on("cuda", job.start, gpu_share=few)
            async with TrainerProcess.open(start, buffers) as trainer:
                await trainer.train(train(2))

    with pytest.raises(OutOfDeviceMemory, match="the device has too little memory for"):
        uvloop.run(main())
