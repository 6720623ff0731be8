"""Training loops of people's own, made collaborative. Importing it imports torch."""

from zoonet.client.loop.spec import SwarmConfig
from zoonet.client.loop.status import SwarmStatus
from zoonet.client.loop.swarm import Swarm

__all__ = ["Swarm", "SwarmConfig", "SwarmStatus"]
