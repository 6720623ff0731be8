"""zoo_compute: the name under which the interface was announced. Everything is zoonet's."""

from typing import Any

import zoonet
from zoonet import __version__
from zoonet.client import (
    Client,
    Contribution,
    EntryConfig,
    Job,
    JobOutput,
    Network,
    join_world,
)
from zoonet.config import (
    CheckpointConfig,
    ComputeJob,
    DataConfig,
    ModelConfig,
    PeersConfig,
    TrainingConfig,
    VerificationConfig,
)
from zoonet.errors import ZoonetError
from zoonet.jobs import JobView

__all__ = [
    "CheckpointConfig",
    "Client",
    "ComputeJob",
    "Contribution",
    "DataConfig",
    "EntryConfig",
    "Job",
    "JobOutput",
    "JobView",
    "ModelConfig",
    "Network",
    "PeersConfig",
    "Swarm",
    "SwarmConfig",
    "SwarmStatus",
    "TrainingConfig",
    "VerificationConfig",
    "ZoonetError",
    "__version__",
    "join_world",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # what imports torch, when it is first used
        return getattr(zoonet, name)
    raise AttributeError(f"module 'zoo_compute' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
