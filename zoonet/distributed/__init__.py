"""Tensors between named peers: send and recv, collectives, and a torch.distributed backend."""

from zoonet.distributed.exchange import Exchange, ExchangeConfig
from zoonet.distributed.group import Group

__all__ = ["Exchange", "ExchangeConfig", "Group"]
