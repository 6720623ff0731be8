"""A tiny prepared job, which tests change as they need it."""

from __future__ import annotations

from typing import Any

from zoonet.config import (
    CheckpointConfig,
    DataSpec,
    ModelSpec,
    PeersConfig,
    PreparedJob,
    TrainingConfig,
    VerificationConfig,
)

CID = "bafkrei" + "a" * 52


def model_spec(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "kind": "gpt",
        "num_layers": 2,
        "num_heads": 2,
        "width": 8,
        "context": 16,
        "dropout": 0.0,
        "vocab_size": 256,
        "hf_config": {},
        "embedding_dim": 8,
    }
    return ModelSpec(**fields | changes)


def data_spec(**changes: Any) -> DataSpec:
    fields: dict[str, Any] = {
        "train_cid": CID,
        "num_train_tokens": 900,
        "heldout_cid": CID,
        "num_heldout_tokens": 100,
        "token_bytes": 1,
    }
    return DataSpec(**fields | changes)


def prepared_job(nonce: int = 0, **changes: Any) -> PreparedJob:
    """A job of 1000 tokens on a small GPT; its files exist only where `changes` name them."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": model_spec(),
        "training": TrainingConfig(tokens=1000, batch_size=4),
        "data": data_spec(),
        "peers": PeersConfig(),
        "checkpoint": CheckpointConfig(),
        "verification": VerificationConfig(),
        "num_parameters": 1234,
        "parameters_cid": CID,
        "tokenizer_cid": CID,
        "nonce": f"{nonce:032x}",
    }
    return PreparedJob(**fields | changes)
