"""Who is in the swarm: this machine's hardware, peers met before, neighbours, the directory."""

from zoonet.membership.cache import PeerCache
from zoonet.membership.directory import Directory, DirectoryConfig
from zoonet.membership.hardware import OPEN_TIER, TIERS, probe, tier_of
from zoonet.membership.lan import LAN_SEARCH_S, Lan, LanConfig

__all__ = [
    "LAN_SEARCH_S",
    "OPEN_TIER",
    "TIERS",
    "Directory",
    "DirectoryConfig",
    "Lan",
    "LanConfig",
    "PeerCache",
    "probe",
    "tier_of",
]
