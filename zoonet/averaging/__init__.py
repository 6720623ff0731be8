"""Rounds: agreement on who averages what, and the all-reduce that does it."""

from zoonet.averaging.allreduce import Averager, TreeAllReduce
from zoonet.averaging.certificates import Certificates, FileLog
from zoonet.averaging.chain import Chain, Credit, coordinators, credits, genesis
from zoonet.averaging.config import Patience, RoundsConfig
from zoonet.averaging.gear import ParticipantEvents
from zoonet.averaging.messages import Certificate, Round, RoundResult
from zoonet.averaging.participant import Participant
from zoonet.averaging.replica import STATE_CHUNK_BYTES, Replica
from zoonet.averaging.site_mean import SiteMean
from zoonet.averaging.state_sync import root_of

__all__ = [
    "STATE_CHUNK_BYTES",
    "Averager",
    "Certificate",
    "Certificates",
    "Chain",
    "Credit",
    "FileLog",
    "Participant",
    "ParticipantEvents",
    "Patience",
    "Replica",
    "Round",
    "RoundResult",
    "RoundsConfig",
    "SiteMean",
    "TreeAllReduce",
    "coordinators",
    "credits",
    "genesis",
    "root_of",
]
