"""Jobs written in Python: dataclasses or dicts, equally strict."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest

from zoonet import codecs
from zoonet.config import (
    CheckpointConfig,
    ComputeJob,
    DataConfig,
    ModelConfig,
    PeersConfig,
    TrainingConfig,
    VerificationConfig,
)
from zoonet.config.job import CodecName
from zoonet.crypto import Identity
from zoonet.errors import ConfigError


def test_the_published_snippet_of_a_job_runs() -> None:
    job = ComputeJob(
        model_config={"kind": "gpt"},
        data_config={"text": "stdlib"},
        training_config={"tokens": 1000},
        checkpoint_config=CheckpointConfig(interval=1000, storage="ipfs", redundancy=3),
        budget_max=10000,
    )
    assert job.checkpoint_config.storage == "ipfs"
    assert job.budget_max == 10000


def test_dicts_and_dataclasses_make_the_same_job() -> None:
    assert ComputeJob(training_config={"tokens": 7, "inner_lr": 1}) == ComputeJob(
        training_config=TrainingConfig(tokens=7, inner_lr=1.0)
    )


def test_a_job_can_be_altered_by_replace() -> None:
    job = ComputeJob(training_config={"tokens": 7})
    assert dataclasses.replace(job, name="other").name == "other"


WRONG: list[tuple[type, dict[str, Any], str]] = [
    (ModelConfig, {"width": 30}, "model.width is 30, expected a multiple of num_heads 4"),
    (ModelConfig, {"context": 1}, "model.context is 1, expected 2 to 1,048,576"),
    (ModelConfig, {"dropout": 1.0}, "model.dropout is 1.0, expected 0 or more and less than 1"),
    (ModelConfig, {"kind": "rnn"}, "model.kind is 'rnn', expected one of gpt, transformers"),
    (ModelConfig, {"kind": "transformers"}, "model.hf_config is {}, expected a config.json's"),
    (ModelConfig, {"hf_config": "c.json"}, "model.hf_config is 'c.json', expected none for a"),
    (DataConfig, {"text": ""}, "data.text is '', expected a path or stdlib"),
    (DataConfig, {"text": "a", "dataset": "b"}, "data.text is 'a', expected nothing beside data.d"),
    (DataConfig, {"heldout_fraction": 0}, "data.heldout_fraction is 0"),
    (TrainingConfig, {"tokens": True}, "training.tokens is True, expected a whole number"),
    (TrainingConfig, {"tokens": 5, "inner_lr": float("nan")}, "training.inner_lr is nan"),
    (TrainingConfig, {"tokens": 5, "inner_lr": float("inf")}, "training.inner_lr is inf"),
    (TrainingConfig, {"tokens": 5, "betas": (0.9, 1.0)}, "training.betas is (0.9, 1.0)"),
    (TrainingConfig, {"tokens": 5, "grad_clip": float("nan")}, "training.grad_clip is nan"),
    (CheckpointConfig, {"interval": 0}, "checkpoint.interval is 0"),
    (CheckpointConfig, {"storage": "s3"}, "checkpoint.storage is 's3', expected one of peers"),
    (VerificationConfig, {"sample_rate": 2}, "verification.sample_rate is 2"),
    (PeersConfig, {"min": 3, "max": 2}, "peers.max is 2, expected at least peers.min"),
    (PeersConfig, {"allowed": "16Uiu2"}, "peers.allowed is '16Uiu2', expected a list"),
]


@pytest.mark.parametrize(("section", "values", "message"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(
    section: type, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training_config": {"tokns": 5}}, "unknown key 'tokns' in training; did you mean"),
        ({"training_config": {}}, "training.tokens is missing"),
        ({"training_config": None}, "training is None, expected a mapping"),
        ({"training_config": {"tokens": 5}, "name": "x" * 101}, "name is longer than 100"),
        ({"training_config": {"tokens": 5}, "budget_max": -1}, "budget.max is -1"),
        ({"training_config": {"tokens": 5}, "budget_max": "5"}, "budget.max is '5'"),
        (
            {
                "training_config": {"tokens": 5, "task": "embedding"},
                "model_config": {"kind": "embedding", "context": 63},
            },
            "model.context is 63; pairs are halves: make it even",
        ),
        (
            {
                "training_config": {"tokens": 5, "task": "embedding", "batch_size": 1},
                "model_config": {"kind": "embedding"},
            },
            "training.batch_size is 1; contrast needs at least 2 samples",
        ),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ComputeJob(**arguments)
    assert str(caught.value).startswith(message)


def test_peer_ids_are_allowed() -> None:
    peer_id = Identity(b"\x01" * 32).peer_id
    assert PeersConfig(allowed=(peer_id,)).allowed == (peer_id,)


def test_every_codec_can_be_chosen() -> None:
    assert get_args(CodecName) == codecs.NAMES
