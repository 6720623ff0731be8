"""What a job consists of, in the words of its file and of `ComputeJob(...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from zoonet.config.schema import FieldError, Section, build, convert
from zoonet.crypto import public_key_of

ModelKind = Literal["gpt", "transformers", "embedding"]
Task = Literal["causal-lm", "embedding"]
CodecName = Literal["fp32", "fp16", "bf16", "int8", "e3m0", "topk2"]
STDLIB: Final = "stdlib"

MAX_NAME_CHARS: Final = 100
MAX_CONTEXT: Final = 1 << 20
MAX_VOCAB_SIZE: Final = 1 << 22
MAX_TOKENS: Final = 10**15
MAX_PEERS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Section):
    """The architecture. Only shapes and sizes: no code travels in a job."""

    SECTION: ClassVar[str] = "model"

    kind: ModelKind = "gpt"  # our own GPT, any transformers causal LM, or a text encoder
    num_layers: int = 4
    num_heads: int = 4
    width: int = 128  # of the residual stream; a multiple of num_heads
    context: int = 64  # tokens of one sample
    dropout: float = 0.0
    vocab_size: int = 0  # 0: as large as the tokenizer's
    hf_config: dict[str, Any] | str = field(default_factory=dict)  # or the path of a config.json
    embedding_dim: int = 128  # of the vectors that an embedding model returns

    def check(self) -> None:
        self.require_between(1, 1024, "num_layers", "num_heads")
        self.require_between(1, 1 << 17, "width", "embedding_dim")
        self.require_between(2, MAX_CONTEXT, "context")
        self.require_between(0, MAX_VOCAB_SIZE, "vocab_size")
        self.require("dropout", 0 <= self.dropout < 1, "0 or more and less than 1")
        self.require(
            "width", self.width % self.num_heads == 0, f"a multiple of num_heads {self.num_heads}"
        )
        is_transformers = self.kind == "transformers"
        expected = "a config.json's path or contents" if is_transformers else "none"
        is_right = bool(self.hf_config) == is_transformers
        self.require("hf_config", is_right, f"{expected} for a model of the kind {self.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(Section):
    """The text. A sample is a window of `context` tokens.

    causal-lm: the targets are the same window one token later. embedding: the two halves of a
    window, adjacent pieces of one text, are a positive pair; the batch's others are negatives.
    """

    SECTION: ClassVar[str] = "data"

    text: str = STDLIB  # a file, a directory of files, or "stdlib": Python's own library
    tokenizer: str = "byte"  # "byte", "char", or the path of a tokenizers JSON file
    heldout_fraction: float = 0.1  # the last part of the text, never trained on
    dataset: str = ""  # a Hugging Face dataset by name, in place of `text`
    max_bytes: int = 0  # use only this much of the text; 0: all of it

    def check(self) -> None:
        self.require("text", bool(self.text), "a path or stdlib")
        if self.dataset:
            self.require("text", self.text == STDLIB, "nothing beside data.dataset")
        self.require("tokenizer", bool(self.tokenizer), "byte, char or a path")
        self.require_between(0.0001, 0.9, "heldout_fraction")
        self.require_between(0, 1 << 50, "max_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(Section):
    """How it is trained: inner steps on each peer, an outer step on their mean (DiLoCo)."""

    SECTION: ClassVar[str] = "training"

    task: Task = "causal-lm"
    tokens: int  # to train on in total, over all peers
    batch_size: int = 3  # samples of one inner step of one peer
    inner_steps: int = 25  # H: steps of a peer of common speed between two outer steps
    optimizer: Literal["adamw", "muon"] = "adamw"  # inner
    inner_lr: float = 2e-3  # peak, after the warm-up
    min_lr_fraction: float = 0.1  # of inner_lr, where the cosine ends
    warmup_fraction: float = 0.02  # of all steps
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # norm of the gradient; 0: no clipping
    outer_lr: float = 0.7
    outer_momentum: float = 0.9  # Nesterov
    outer_momentum_spread: bool = False  # trainers move along it in all steps of a round: see docs
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False  # a third more arithmetic, far less memory: see docs
    codec: CodecName = "fp32"  # of what peers send each other: fewer bytes, less exact
    seed: int = 0  # of the initial parameters and of the order of the data
    dynamic_steps: bool = True  # faster peers take more steps a round, slower ones fewer
    ahead: float = 0.0  # times its steps a peer may train on while a round is averaged; 0: it waits
    site_steps: int = 0  # of inner_steps, between means of peers near each other; 0: there are none
    eval_tokens: int = 16384  # held-out tokens of the evaluation between rounds; 0: all
    eval_interval: int = 1  # rounds from one evaluation to the next

    def check(self) -> None:
        self.require_between(1, MAX_TOKENS, "tokens")
        self.require_between(1, 1 << 16, "batch_size")
        self.require_between(1, 100_000, "inner_steps")
        self.require("inner_lr", 0 < self.inner_lr <= 10, "more than 0 and at most 10")
        self.require("outer_lr", 0 < self.outer_lr <= 10, "more than 0 and at most 10")
        self.require_between(0, 1, "min_lr_fraction", "warmup_fraction")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        self.require("betas", in_range, "two numbers, each 0 or more and less than 1")
        self.require("outer_momentum", 0 <= self.outer_momentum < 1, "0 or more, less than 1")
        self.require_between(0, 1000, "weight_decay", "grad_clip")
        self.require_between(0, 8, "ahead")
        self.require_between(0, 100_000, "site_steps")
        fits = not (self.ahead and self.site_steps)
        self.require("site_steps", fits, "0 where training.ahead is more than 0")
        self.require_between(0, (1 << 63) - 1, "seed")
        self.require_between(0, MAX_TOKENS, "eval_tokens")
        self.require_between(1, 1_000_000, "eval_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig(Section):
    """Where the state is kept while the job runs."""

    SECTION: ClassVar[str] = "checkpoint"

    interval: int = 1000  # inner steps, over all peers, from one checkpoint to the next
    storage: Literal["peers", "ipfs"] = "peers"
    redundancy: int = 3  # peers that keep each checkpoint

    def check(self) -> None:
        self.require_between(1, 1_000_000_000, "interval")
        self.require_between(1, 100, "redundancy")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationConfig(Section):
    """How much of the work is checked."""

    SECTION: ClassVar[str] = "verification"

    sample_rate: float = 0.05  # share of (peer, round) pairs that are trained again and compared

    def check(self) -> None:
        self.require_between(0, 1, "sample_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig(Section):
    """Who trains it."""

    SECTION: ClassVar[str] = "peers"

    min: int = 1  # peers that must be there before the first round
    max: int = 64  # peers that may take part at once
    allowed: tuple[str, ...] = ()  # peer ids; empty: anyone

    def check(self) -> None:
        self.require_between(1, MAX_PEERS, "min", "max")
        self.require("max", self.max >= self.min, f"at least peers.min, which is {self.min}")
        self.require("allowed", len(self.allowed) <= 256, "at most 256 peer ids")
        for peer_id in self.allowed:
            try:
                public_key_of(peer_id)
            except ValueError as error:
                raise FieldError(self.SECTION, "allowed", f"has an entry: {error}") from error


@dataclass(frozen=True, slots=True, init=False)
class ComputeJob:
    """A whole job. Each section is its dataclass or a dict with the same keys."""

    name: str  # for people; not unique
    model_config: ModelConfig
    data_config: DataConfig
    training_config: TrainingConfig
    checkpoint_config: CheckpointConfig
    verification_config: VerificationConfig
    peers_config: PeersConfig
    budget_max: int | float  # recorded with the job; until there is a market nobody is paid

    def __init__(
        self,
        *,
        training_config: TrainingConfig | Mapping[str, Any],
        model_config: ModelConfig | Mapping[str, Any] = ModelConfig(),
        data_config: DataConfig | Mapping[str, Any] = DataConfig(),
        checkpoint_config: CheckpointConfig | Mapping[str, Any] = CheckpointConfig(),
        verification_config: VerificationConfig | Mapping[str, Any] = VerificationConfig(),
        peers_config: PeersConfig | Mapping[str, Any] = PeersConfig(),
        name: str = "",
        budget_max: int | float = 0,
    ) -> None:
        """Raises ConfigError that names the section, the field and what was expected."""
        assign = object.__setattr__
        assign(self, "name", convert(name, str, "", "name"))
        assign(self, "model_config", build(ModelConfig, model_config))
        assign(self, "data_config", build(DataConfig, data_config))
        assign(self, "training_config", build(TrainingConfig, training_config))
        assign(self, "checkpoint_config", build(CheckpointConfig, checkpoint_config))
        assign(self, "verification_config", build(VerificationConfig, verification_config))
        assign(self, "peers_config", build(PeersConfig, peers_config))
        assign(self, "budget_max", convert(budget_max, int | float, "budget", "max"))
        self._check()

    def _check(self) -> None:
        if len(self.name) > MAX_NAME_CHARS:
            raise FieldError("", "name", f"is longer than {MAX_NAME_CHARS} characters")
        if not 0 <= self.budget_max <= 1e18:
            raise FieldError("budget", "max", f"is {self.budget_max}, expected 0 to 1e18")
        check_task(self.model_config.kind, self.model_config.context, self.training_config)


def check_task(kind: ModelKind, context: int, training: TrainingConfig) -> None:
    """Raise FieldError where the model and the task do not belong together."""
    if (kind == "embedding") != (training.task == "embedding"):
        found = f"is {training.task}, which a model of the kind {kind} cannot do"
        raise FieldError("training", "task", found)
    if training.task != "embedding":
        return
    if context % 2:
        raise FieldError("model", "context", f"is {context}; pairs are halves: make it even")
    if training.batch_size < 2:
        raise FieldError("training", "batch_size", "is 1; contrast needs at least 2 samples")
