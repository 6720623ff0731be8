"""Who is in the swarm: this machine's hardware, peers met before, neighbours, the directory."""

from zoonet.membership.cache import PeerCache
from zoonet.membership.directory import Directory, DirectoryConfig
from zoonet.membership.hardware import OPEN_TIER, TIERS, probe, tier_of
from zoonet.membership.join import (
    Dial,
    FoundSwarm,
    Joined,
    Joining,
    SearchLan,
    Source,
    Step,
    after_dial,
    after_search,
    next_step,
)
from zoonet.membership.lan import Lan, LanConfig

__all__ = [
    "OPEN_TIER",
    "TIERS",
    "Dial",
    "Directory",
    "DirectoryConfig",
    "FoundSwarm",
    "Joined",
    "Joining",
    "Lan",
    "LanConfig",
    "PeerCache",
    "SearchLan",
    "Source",
    "Step",
    "after_dial",
    "after_search",
    "next_step",
    "probe",
    "tier_of",
]
