"""A job small enough to train inside a test, and its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.prepared import data_spec, model_spec, prepared_job
from zoonet import config
from zoonet.training.messages import Start
from zoonet.training.models import count_parameters, initial_parameters
from zoonet.training.tokenizers import CharTokenizer

TEXT = "".join(f"the {n} peers of round {n * n} agreed, and went on. " for n in range(300))
MODEL: dict[str, Any] = {"width": 16}
TRAINING: dict[str, Any] = {
    "tokens": 16 * 4 * 400,
    "batch_size": 4,
    "inner_lr": 1e-2,
    "warmup_fraction": 0.0,
}

torch.set_num_threads(1)


class TinyJob:
    """A prepared job on disk: `start` for a trainer, `initial_P` to begin from."""

    def __init__(self, folder: Path, model: dict[str, Any], training: dict[str, Any]) -> None:
        tokenizer = CharTokenizer.of(TEXT)
        cut = len(TEXT) * 9 // 10
        train, heldout = tokenizer.encode(TEXT[:cut]), tokenizer.encode(TEXT[cut:])
        (folder / "train").write_bytes(train.tobytes())
        (folder / "heldout").write_bytes(heldout.tobytes())
        (folder / "tokenizer").write_bytes(tokenizer.to_bytes())
        self.spec = model_spec(**{**MODEL, "vocab_size": tokenizer.vocab_size, **model})
        self.training = config.TrainingConfig(**{**TRAINING, **training})
        self.num_parameters = count_parameters(self.spec)
        self.initial_P = initial_parameters(self.spec, seed=1)
        self.prepared = prepared_job(
            model=self.spec,
            training=self.training,
            data=data_spec(num_train_tokens=len(train), num_heldout_tokens=len(heldout)),
            num_parameters=self.num_parameters,
        )
        self.start = Start(
            prepared=config.encode(self.prepared),
            train_path=str(folder / "train"),
            heldout_path=str(folder / "heldout"),
            tokenizer_path=str(folder / "tokenizer"),
            device="cpu",
        )


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., TinyJob]:
    def make(model: dict[str, Any] | None = None, **training: Any) -> TinyJob:
        return TinyJob(tmp_path, model or {}, training)

    return make


@pytest.fixture
def job(make_job: Callable[..., TinyJob]) -> TinyJob:
    return make_job()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
