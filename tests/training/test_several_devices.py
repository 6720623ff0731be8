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
import uvloop

from zoonet.errors import ConfigError, TrainingError
from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import TrainerProcess
from zoonet.training.inline import InlineTrainer
from zoonet.training.messages import Sample, Start, Train

TWO = "cpu,cpu"
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
    return buffers


def on_two(start: Start, **changes: Any) -> Start:
    return msgspec.structs.replace(start, device=TWO, **changes)


@pytest.mark.parametrize(
    ("kind", "training"),
    [
        ("gpt", {}),
        ("gpt", {"optimizer": "muon", "batch_size": 3, "activation_checkpointing": True}),
        ("transformers", {"optimizer": "muon"}),
        ("embedding", {"task": "embedding"}),
    ],
)
def test_two_ranks_train_what_one_device_trains(
    make_job: Callable[..., Any], kind: str, training: dict[str, Any]
) -> None:
    if kind == "transformers":
        pytest.importorskip("transformers")
    job = make_job(MODELS[kind], **training)

    async def main() -> None:
        with buffers_of(job) as near, buffers_of(job) as far:
            async with (
                TrainerProcess.open(on_two(job.start), far) as two,
                InlineTrainer.open(job.start, near) as one,
            ):
                assert two.layout == one.layout
                for command in (
                    train((0, 5)),
                    train((9, 12), has_inner_state=True),
                    train((12, 14), is_fresh=False),
                ):
                    there, here = await two.train(command), await one.train(command)
                    assert there.slots == here.slots
                    assert there.loss == pytest.approx(here.loss, rel=1e-5)
                    np.testing.assert_allclose(far.local_P, near.local_P, atol=2e-5)
                    np.testing.assert_allclose(far.inner_N, near.inner_N, atol=1e-4)
                    assert np.abs(far.local_P - job.initial_P).max() > 1e-3
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
