"""Bulk bytes between peers: shared memory, pinned TLS 1.3 connections, or streams."""

from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.lanes import HostLanes

__all__ = ["HostLanes", "LanesConfig"]
