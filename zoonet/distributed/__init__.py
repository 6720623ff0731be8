"""Tensors between named peers: send and recv, collectives, and a torch.distributed backend."""

from zoonet.distributed.exchange import Exchange, ExchangeConfig
from zoonet.distributed.group import Group
from zoonet.distributed.process_group import PeerProcessGroup
from zoonet.distributed.work import PendingWork
from zoonet.distributed.world import World

__all__ = ["Exchange", "ExchangeConfig", "Group", "PeerProcessGroup", "PendingWork", "World"]
