"""The job's vocabulary: what a user writes, and what peers receive."""

from zoonet.config.job import (
    STDLIB,
    CheckpointConfig,
    ComputeJob,
    DataConfig,
    ModelConfig,
    PeersConfig,
    TrainingConfig,
    VerificationConfig,
)
from zoonet.config.prepared import (
    DataSpec,
    ModelSpec,
    PreparedJob,
    TrainingSpec,
    decode,
    encode,
    num_slots,
    tokens_per_slot,
)
from zoonet.config.yaml import load_job, parse_job

__all__ = [
    "STDLIB",
    "CheckpointConfig",
    "ComputeJob",
    "DataConfig",
    "DataSpec",
    "ModelConfig",
    "ModelSpec",
    "PeersConfig",
    "PreparedJob",
    "TrainingConfig",
    "TrainingSpec",
    "VerificationConfig",
    "decode",
    "encode",
    "load_job",
    "num_slots",
    "parse_job",
    "tokens_per_slot",
]
