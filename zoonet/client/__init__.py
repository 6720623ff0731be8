"""The public interface for those who have models trained."""

from zoonet.client.client import Client, Job
from zoonet.client.entry import EntryConfig
from zoonet.client.network import Network, Swarm
from zoonet.client.output import Contribution, JobOutput
from zoonet.client.prepare import prepare
from zoonet.client.world import join_world

__all__ = [
    "Client",
    "Contribution",
    "EntryConfig",
    "Job",
    "JobOutput",
    "Network",
    "Swarm",
    "join_world",
    "prepare",
]
