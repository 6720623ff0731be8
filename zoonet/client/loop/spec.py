"""What all peers of a run must agree on, as one canonical block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from zoonet.config import TrainingConfig
from zoonet.config.job import MAX_PEERS, CodecName
from zoonet.crypto import sha256
from zoonet.errors import ConfigError
from zoonet.training.export import Layout

MAX_SPEC_BYTES: Final = 1 << 20
MAX_RUN_CHARS: Final = 100
_MOST_TOLD: Final = 4  # differences of a kind, in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """How the peers of a run train together. All of them must say the same."""

    inner_steps: int = 25  # steps of a peer of common speed between two outer steps
    outer_lr: float = 0.7
    outer_momentum: float = 0.9  # Nesterov
    codec: CodecName = "fp32"  # of what peers send each other: fewer bytes, less exact
    dynamic_steps: bool = True  # faster peers take more steps a round, slower ones fewer
    ahead: float = 0.0  # times its steps a peer may train on while a round is averaged; 0: it waits
    min_peers: int = 1  # that must be there before the first round
    max_peers: int = 64  # that may take part at once
    seed: int = 0  # of the order of the data

    def __post_init__(self) -> None:
        if not 1 <= self.min_peers <= self.max_peers <= MAX_PEERS:
            raise ConfigError(
                f"min_peers is {self.min_peers} and max_peers {self.max_peers}; "
                f"at least 1, in this order, and at most {MAX_PEERS}"
            )


class RunSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run: its model by names and shapes, its data by their number, its settings."""

    run: Annotated[str, Meta(min_length=1, max_length=MAX_RUN_CHARS)]
    num_slots: Annotated[int, Meta(ge=1)]
    batch_size: Annotated[int, Meta(ge=1)]
    num_samples: Annotated[int, Meta(ge=1)]  # of the dataset
    config: SwarmConfig
    layout: Layout

    @property
    def num_parameters(self) -> int:
        """P, of the flat vector."""
        total = 0
        for _, shape in self.layout:
            size = 1
            for length in shape:
                size *= length
            total += size
        return total

    def training(self) -> TrainingConfig:
        """The same in the words of a job. Raises ConfigError for what cannot work."""
        return TrainingConfig(
            tokens=self.num_slots * self.batch_size,  # a sample counts as one
            batch_size=self.batch_size,
            inner_steps=self.config.inner_steps,
            outer_lr=self.config.outer_lr,
            outer_momentum=self.config.outer_momentum,
            codec=self.config.codec,
            dynamic_steps=self.config.dynamic_steps,
            ahead=self.config.ahead,
            seed=self.config.seed,
        )


def encode(spec: RunSpec) -> bytes:
    """The one byte form of a spec."""
    raw = msgspec.json.encode(spec, order="sorted")
    if len(raw) > MAX_SPEC_BYTES:
        raise ConfigError(f"the names of {len(spec.layout)} parameters are too many to be told")
    return raw


def decode(raw: bytes) -> RunSpec:
    """Read a stranger's spec. Raises ConfigError."""
    try:
        return msgspec.json.decode(raw, type=RunSpec, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"not the settings of a run: {error}") from error


def job_id(spec_cid: str, parameters_cid: str) -> str:
    """The run's id: everybody with these settings and initial parameters means the same one."""
    return sha256(b"zoonet-run/1\x00", spec_cid.encode(), parameters_cid.encode())[:16].hex()


def differences(mine: RunSpec, theirs: RunSpec) -> str:
    """Say in words where two specs differ."""
    told = [
        f"{name} is {getattr(theirs, name)} there and {getattr(mine, name)} here"
        for name in ("num_slots", "batch_size", "num_samples")
        if getattr(mine, name) != getattr(theirs, name)
    ]
    for name in SwarmConfig.__dataclass_fields__:
        here, there = getattr(mine.config, name), getattr(theirs.config, name)
        if here != there:
            told.append(f"{name} is {there} there and {here} here")
    return "; ".join([*told, *_differences_of_models(dict(mine.layout), dict(theirs.layout))])


def _differences_of_models(
    mine: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]
) -> list[str]:
    told = []
    for where, names in (
        ("there", sorted(set(theirs) - set(mine))),
        ("here", sorted(set(mine) - set(theirs))),
    ):
        if names:
            shown = ", ".join(name[:80] for name in names[:_MOST_TOLD])
            more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
            told.append(f"only the model {where} has the parameters {shown}{more}")
    shapes = [name for name in sorted(mine) if name in theirs and mine[name] != theirs[name]]
    told += [
        f"the parameter {name[:80]} is of shape {theirs[name]} there and {mine[name]} here"
        for name in shapes[:_MOST_TOLD]
    ]
    return told
