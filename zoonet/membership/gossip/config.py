"""What can be set about gossip. The defaults fit 3 to 10,000 peers."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoonet.errors import ConfigError
from zoonet.membership.gossip.item import MemberRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLimits:
    """How much a table holds, whoever speaks. Raises ConfigError for what cannot hold anything."""

    max_records: int = 65_536
    max_bytes: int = 64 * 1024 * 1024
    max_author_bytes: int = 64 * 1024  # of one author: about 150 jobs
    max_accusation_bytes: int = 4096  # of one author: about 20 accusations that stand

    def __post_init__(self) -> None:
        if min(self.max_records, self.max_accusation_bytes) < 512:
            raise ConfigError("a table must hold 512 records and 512 bytes of accusations")
        if not 16 * 1024 <= self.max_author_bytes <= self.max_bytes:
            raise ConfigError("max_author_bytes must be 16 KiB or more and at most max_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    """How often a peer talks, and to how many. Raises ConfigError for what cannot work."""

    tick_s: float = 4.0  # between two calls to a neighbour
    hot_s: float = 30.0  # for which a peer offers what it has learned
    reconcile_s: float = 60.0  # between two comparisons of whole tables
    rotate_s: float = 300.0  # between two exchanges of a random partner for another
    num_watched: int = 3  # ring predecessors that a peer calls to see whether they live
    num_partners: int = 4  # drawn from the whole table
    num_misses: int = 3  # calls without an answer before a peer is accused
    quorum: int = 2  # accusers that make a verdict
    jury: int = 8  # ring successors of the accused whose word counts
    lifetime_s: float = 12 * 3600.0  # of our own record
    renew_fraction: float = 0.4  # of the lifetime is left when it is signed again
    refute_s: float = 30.0  # at most one renewal against accusations in this time
    call_timeout_s: float = 6.0
    num_contacts: int = 3  # peers that a newcomer asks for the table
    limits: TableLimits = field(default_factory=TableLimits)

    def __post_init__(self) -> None:
        times = (self.tick_s, self.hot_s, self.reconcile_s, self.rotate_s, self.call_timeout_s)
        if min(times) <= 0:
            raise ConfigError("intervals and timeouts are seconds above 0")
        if not 60 <= self.lifetime_s <= MemberRecord.MAX_LIFETIME_S:
            raise ConfigError(f"lifetime_s must be 60 to {MemberRecord.MAX_LIFETIME_S:.0f} seconds")
        if not 0 < self.renew_fraction < 1:
            raise ConfigError("renew_fraction must lie between 0 and 1")
        counts = (self.num_watched, self.num_partners, self.num_misses, self.num_contacts)
        if min(counts) < 1 or not 1 <= self.quorum <= self.jury:
            raise ConfigError("counts must be 1 or more, and the quorum at most the jury")
