"""The public interface for those who have models trained."""

from zoonet.client.client import Client, Job
from zoonet.client.entry import EntryConfig
from zoonet.client.network import Access, Network
from zoonet.client.output import Contribution, JobOutput
from zoonet.client.prepare import prepare
from zoonet.client.world import join_world

__all__ = [
    "Access",
    "Client",
    "Contribution",
    "EntryConfig",
    "Job",
    "JobOutput",
    "Network",
    "join_world",
    "prepare",
]
