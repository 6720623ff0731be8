"""Training: the data's order, the model, the inner steps of a peer and the outer step of all.

Nothing here imports torch until `models`, `session` or `inline` is imported: a node needs none.
"""

from zoonet.training.buffers import SharedBuffers
from zoonet.training.handle import Trainer, TrainerProcess
from zoonet.training.order import SampleOrder
from zoonet.training.outer import outer_step
from zoonet.training.state import chunk_digests, state_digest

__all__ = [
    "SampleOrder",
    "SharedBuffers",
    "Trainer",
    "TrainerProcess",
    "chunk_digests",
    "outer_step",
    "state_digest",
]
