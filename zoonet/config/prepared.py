"""A job as peers receive it: sizes and content ids, no code and no local paths.

It is stored by CID as canonical JSON, and comes from strangers: `decode` bounds everything.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from zoonet.config.job import (
    MAX_NAME_CHARS,
    MAX_VOCAB_SIZE,
    CheckpointConfig,
    ModelConfig,
    ModelKind,
    PeersConfig,
    TrainingConfig,
    VerificationConfig,
    check_task,
)
from zoonet.errors import ConfigError

MAX_SPEC_BYTES: Final = 256 * 1024
MAX_HF_CONFIG_BYTES: Final = 64 * 1024
MAX_PARAMETERS: Final = 10**12
MAX_FILE_TOKENS: Final = 10**14
_MAX_DEPTH: Final = 16
# What would make a model library run or fetch something that the job does not contain.
_REFUSED_HF_KEYS: Final = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "_name_or_path"}
)

Cid = Annotated[str, Meta(pattern=r"^b[a-z2-7]{20,100}$")]
TrainingSpec: TypeAlias = TrainingConfig  # holds nothing local: it travels as it is


class ModelSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The architecture with every size resolved; fields as in `ModelConfig`."""

    kind: ModelKind
    num_layers: int
    num_heads: int
    width: int
    context: int
    dropout: float
    vocab_size: Annotated[int, Meta(ge=2, le=MAX_VOCAB_SIZE)]
    hf_config: dict[str, Any]
    embedding_dim: int

    def __post_init__(self) -> None:
        check_hf_config(self.hf_config)
        ModelConfig(**{name: getattr(self, name) for name in self.__struct_fields__})


class DataSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two files of tokens, little-endian unsigned integers of `token_bytes` bytes each."""

    train_cid: Cid  # manifest
    num_train_tokens: Annotated[int, Meta(ge=3, le=MAX_FILE_TOKENS)]
    heldout_cid: Cid  # manifest
    num_heldout_tokens: Annotated[int, Meta(ge=3, le=MAX_FILE_TOKENS)]
    token_bytes: Literal[1, 2, 4]


class PreparedJob(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a peer needs to train; the files behind the CIDs come from the submitter."""

    name: Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
    model: ModelSpec
    training: TrainingSpec
    data: DataSpec
    peers: PeersConfig
    checkpoint: CheckpointConfig
    verification: VerificationConfig
    num_parameters: Annotated[int, Meta(ge=1, le=MAX_PARAMETERS)]
    parameters_cid: Cid  # manifest of the initial flat parameter vector, little-endian fp32
    tokenizer_cid: Cid  # manifest of tokenizer.json
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]  # the same job may be sent twice

    def __post_init__(self) -> None:
        check_task(self.model.kind, self.model.context, self.training)
        for name in ("num_train_tokens", "num_heldout_tokens"):
            if getattr(self.data, name) <= self.model.context:
                raise ConfigError(
                    f"data.{name} is {getattr(self.data, name)}, too few for one window of "
                    f"{self.model.context} tokens and the token after it"
                )
        if self.model.vocab_size > 1 << (8 * self.data.token_bytes):
            raise ConfigError(
                f"data.token_bytes is {self.data.token_bytes}, too small for "
                f"{self.model.vocab_size} different tokens"
            )

    @property
    def parameter_bytes(self) -> int:
        """Size of the flat fp32 parameter vector."""
        return 4 * self.num_parameters


def num_slots(prepared: PreparedJob) -> int:
    """Inner steps of the whole job; a slot is `batch_size` samples of `context` tokens."""
    return math.ceil(prepared.training.tokens / tokens_per_slot(prepared))


def tokens_per_slot(prepared: PreparedJob) -> int:
    """Training tokens that one inner step of one peer uses."""
    return prepared.training.batch_size * prepared.model.context


def encode(prepared: PreparedJob) -> bytes:
    """The one byte form of a prepared job: JSON with sorted keys and no spaces.

    Raises ConfigError for a job that `decode` would refuse.
    """
    return _canonical(_parse(_canonical(prepared)))


def decode(raw: bytes) -> PreparedJob:
    """Read a stranger's prepared job. Raises ConfigError."""
    if len(raw) > MAX_SPEC_BYTES:
        raise ConfigError(f"a job of {len(raw)} bytes, at most {MAX_SPEC_BYTES}")
    prepared = _parse(raw)
    if _canonical(prepared) != raw:
        raise ConfigError("not a prepared job: unknown fields, or not in canonical form")
    return prepared


def _canonical(prepared: PreparedJob) -> bytes:
    return msgspec.json.encode(prepared, order="sorted")


def _parse(raw: bytes) -> PreparedJob:
    try:
        return msgspec.json.decode(raw, type=PreparedJob, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"not a prepared job: {error}") from error


def check_hf_config(config: dict[str, Any]) -> None:
    """Raise ConfigError for a config that is too large, too deep, or points outside itself."""
    _check_depth(config, 0)
    try:
        num_bytes = len(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.hf_config is not JSON: {error}") from error
    if num_bytes > MAX_HF_CONFIG_BYTES:
        raise ConfigError(f"model.hf_config has {num_bytes} bytes, at most {MAX_HF_CONFIG_BYTES}")
    if config and not isinstance(config.get("model_type"), str):
        raise ConfigError('model.hf_config names no model_type, such as "gpt2"')


def _check_depth(value: object, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"model.hf_config is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, list | tuple):
        for entry in value:
            _check_depth(entry, depth + 1)
    if isinstance(value, dict):
        for key, entry in value.items():
            if key in _REFUSED_HF_KEYS:
                raise ConfigError(f"model.hf_config has {key!r}, which a job may not contain")
            _check_depth(entry, depth + 1)
