"""zoonet: train AI models together, over the open internet, with nobody in charge."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Looked up when first used, so that importing one part does not import all of them.
_PUBLIC = {
    "Client": "zoonet.client",
    "Network": "zoonet.client",
    "CheckpointConfig": "zoonet.config",
    "ComputeJob": "zoonet.config",
    "DataConfig": "zoonet.config",
    "ModelConfig": "zoonet.config",
    "PeersConfig": "zoonet.config",
    "TrainingConfig": "zoonet.config",
    "VerificationConfig": "zoonet.config",
    "join_world": "zoonet.client",
    "Swarm": "zoonet.client.loop",
    "SwarmConfig": "zoonet.client.loop",
    "SwarmStatus": "zoonet.client.loop",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'zoonet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
