"""From a job as its submitter wrote it to what peers receive: shards, parameters, one spec."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path
from typing import Any, Final

from zoonet.blocks import Blocks, put_bytes
from zoonet.client.text import read_text
from zoonet.config import ComputeJob, DataSpec, ModelConfig, ModelSpec, PreparedJob, encode
from zoonet.errors import ConfigError

# What a config.json holds about its own past, and what would only describe a checkpoint.
_LEFT_OUT: Final = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
)

log = logging.getLogger(__name__)


def owner_of(prepared: PreparedJob) -> str:
    """For whom a prepared job's blocks are pinned in the submitter's store."""
    return f"prepared/{prepared.nonce}"


def prepare(job: ComputeJob, store: Blocks) -> PreparedJob:
    """Tokenise the text, make the initial parameters, and put all of it into the store, pinned.

    Takes seconds to minutes and imports torch: call it off the event loop. Raises ConfigError for
    what the submitter must change, StorageError where the store is full.
    """
    from zoonet.training.models import build_model, initial_parameters
    from zoonet.training.tokenizers import make_tokenizer
    from zoonet.training.tokens import token_dtype

    text = read_text(job.data_config)
    tokenizer = make_tokenizer(job.data_config.tokenizer, text)
    model = _model_spec(job.model_config, tokenizer.vocab_size)
    ids = tokenizer.encode(text).astype(token_dtype(model.vocab_size))
    num_train = int(len(ids) * (1 - job.data_config.heldout_fraction))
    _require_enough(job, num_train, len(ids) - num_train)
    if job.training_config.activation_checkpointing:
        build_model(model, device="meta").checkpoint_activations()  # else peers would find out
    theta_P = initial_parameters(model, seed=job.training_config.seed).astype("<f4")

    nonce = secrets.token_hex(16)
    owner = f"prepared/{nonce}"

    def keep(content: bytes) -> str:
        return put_bytes(store, content, owner=owner)

    try:
        prepared = PreparedJob(
            name=job.name,
            model=model,
            training=job.training_config,
            data=DataSpec(
                train_cid=keep(ids[:num_train].tobytes()),
                num_train_tokens=num_train,
                heldout_cid=keep(ids[num_train:].tobytes()),
                num_heldout_tokens=len(ids) - num_train,
                token_bytes=ids.dtype.itemsize,
            ),
            peers=job.peers_config,
            checkpoint=job.checkpoint_config,
            verification=job.verification_config,
            num_parameters=theta_P.size,
            parameters_cid=keep(theta_P.tobytes()),
            tokenizer_cid=keep(tokenizer.to_bytes()),
            nonce=nonce,
        )
        store.pin(owner, (store.put(encode(prepared)),))
    except BaseException:  # an interrupt, too, must not leave blocks pinned for no job
        store.unpin(owner)
        raise
    log.info(
        "prepared name=%s parameters=%d tokens=%d", job.name, prepared.num_parameters, len(ids)
    )
    return prepared


def _require_enough(job: ComputeJob, num_train: int, num_heldout: int) -> None:
    least = job.model_config.context + 1
    for part, found in (("training", num_train), ("held-out", num_heldout)):
        if found < least:
            raise ConfigError(
                f"the {part} part of the text has {found} tokens, fewer than the {least} of one "
                "sample; give more text, a smaller model.context or another data.heldout_fraction"
            )


def _model_spec(config: ModelConfig, tokenizer_vocab_size: int) -> ModelSpec:
    vocab_size = config.vocab_size or max(2, tokenizer_vocab_size)
    if vocab_size < tokenizer_vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the tokenizer has {tokenizer_vocab_size} "
            "tokens; leave it at 0 to take the tokenizer's"
        )
    return ModelSpec(
        kind=config.kind,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        width=config.width,
        context=config.context,
        dropout=config.dropout,
        vocab_size=vocab_size,
        hf_config=_hf_config(config.hf_config),
        embedding_dim=config.embedding_dim,
    )


def _hf_config(config: dict[str, Any] | str) -> dict[str, Any]:
    """The contents of a transformers config, without what names local things."""
    if isinstance(config, str):
        path = Path(config).expanduser()
        config = _read_json(path / "config.json" if path.is_dir() else path)
    return {key: value for key, value in config.items() if key not in _LEFT_OUT}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"model.hf_config is {str(path)!r}, which cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"model.hf_config, {path}, is not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise ConfigError(f"model.hf_config, {path}, is not a JSON object")
    return contents
