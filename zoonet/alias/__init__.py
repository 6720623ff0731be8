"""zoo_compute: the name under which the interface was announced. Everything is zoonet's."""

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
    "TrainingConfig",
    "VerificationConfig",
    "ZoonetError",
    "__version__",
    "join_world",
]
