"""What a plan costs: bytes by peer and direction, and the time that they take. Pure.

The model: chunks are pipelined without a barrier, so every link works from the first chunk to the
last, sums and means share it, and the slowest one sets the time. Before and after that come one
round trip between sites and one chunk each way, since a chunk is added up only when it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from zoonet.averaging.links import PeerLinks, Rates, resolve
from zoonet.averaging.plan import (
    Indices,
    Plan,
    Tree,
    chunk_bounds,
    chunk_values,
    members_by_index,
)
from zoonet.crypto import PeerId

WAN_RTT_S: Final = 0.05  # where nobody has measured one
LAN_RTT_S: Final = 0.001

LinkKind = Literal["wan up", "wan down", "lan up", "lan down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What is averaged, and how many bytes a value takes across sites and within them."""

    num_values: int
    wan_bytes_per_value: float = 4.0
    lan_bytes_per_value: float = 4.0

    def __post_init__(self) -> None:
        if self.num_values < 0 or min(self.wan_bytes_per_value, self.lan_bytes_per_value) <= 0:
            raise ValueError("a payload has no negative size, and every value takes some bytes")


@dataclass(slots=True)
class Load:
    """Bytes that one peer sends and receives, between sites and within its own."""

    wan_up: float = 0.0
    wan_down: float = 0.0
    lan_up: float = 0.0
    lan_down: float = 0.0

    def by_kind(self) -> dict[LinkKind, float]:
        """The same, by the names of links."""
        return {
            "wan up": self.wan_up,
            "wan down": self.wan_down,
            "lan up": self.lan_up,
            "lan down": self.lan_down,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How long a plan takes, and which link takes longest."""

    peer: PeerId  # whose link it is
    link: LinkKind
    link_bytes: float
    link_bytes_per_s: float
    latency_s: float
    wan_bytes: float  # of all peers, each byte once

    @property
    def busy_s(self) -> float:
        """Seconds that the slowest link is at work."""
        return self.link_bytes / self.link_bytes_per_s

    @property
    def total_s(self) -> float:
        """Seconds from the first byte to the last mean."""
        return self.busy_s + self.latency_s


def loads(
    plan: Plan,
    contributors: Collection[str],
    payload: Payload,
    *,
    sites: Sequence[Indices] | None = None,
) -> list[Load]:
    """Bytes of every peer, by index.

    `sites` says where peers really are, if that is not what the plan says: then it tells what a
    plan for other sites costs in these.
    """
    place = {peer: at for at, site in enumerate(sites or plan.sites) for peer in site}
    found = [Load() for _ in plan.peers]
    active = members_by_index(plan, contributors)

    def flow(sender: int, receiver: int, num_bytes: float) -> None:
        if place[sender] != place[receiver]:
            found[sender].wan_up += num_bytes
            found[receiver].wan_down += num_bytes
        else:
            found[sender].lan_up += num_bytes
            found[receiver].lan_down += num_bytes

    lan, wan = payload.lan_bytes_per_value, payload.wan_bytes_per_value
    mean = wan if len(plan.sites) > 1 else lan
    for tree in plan.trees:
        num_values = _num_values(tree, payload.num_values)
        for site, owner in zip(plan.sites, tree.owners, strict=True):
            for peer in site:
                if peer == owner:
                    continue
                if peer in active:
                    flow(peer, owner, lan * num_values)
                flow(owner, peer, mean * num_values)
            if owner != tree.root:
                if active.intersection(site):
                    flow(owner, tree.root, wan * num_values)
                flow(tree.root, owner, mean * num_values)
    return found


def _num_values(tree: Tree, num_values: int) -> int:
    return chunk_bounds(num_values, tree.stop - 1)[1] - chunk_bounds(num_values, tree.first)[0]


def wan_bytes(
    plan: Plan,
    contributors: Collection[str],
    payload: Payload,
    *,
    sites: Sequence[Indices] | None = None,
) -> float:
    """Bytes that cross between sites, each once. `sites` as in `loads`."""
    return sum(load.wan_up for load in loads(plan, contributors, payload, sites=sites))


def predict(
    plan: Plan,
    contributors: Collection[str],
    links: Mapping[PeerId, PeerLinks],
    payload: Payload,
    *,
    sites: Sequence[Indices] | None = None,
    wan_rtt_s: float = WAN_RTT_S,
    shares_lines: bool = False,
) -> Forecast:
    """Predict a plan's time over these links. `sites` as in `loads`.

    With `shares_lines` a site's peers have one line together, of which each one's rate is its
    part: then who sends less leaves more to the others. Raises ValueError for a plan without peers.
    """
    if not plan.peers:
        raise ValueError("a plan without peers takes no time")
    rates = resolve([PeerId(peer) for peer in plan.peers], links)
    carried = loads(plan, contributors, payload, sites=sites)
    works = [
        _Work(at, kind, num_bytes, _rate(rates[at], kind))
        for at, load in enumerate(carried)
        for kind, num_bytes in load.by_kind().items()
    ]
    if shares_lines:
        works = _by_line(works, sites or plan.sites, members_by_index(plan, contributors))
    slowest = max(works, key=lambda work: work.num_bytes / work.bytes_per_s)
    across = sum(load.wan_up for load in carried)
    is_wan = slowest.kind.startswith("wan")
    value_bytes = payload.wan_bytes_per_value if is_wan else payload.lan_bytes_per_value
    chunk_bytes = value_bytes * min(payload.num_values, chunk_values(payload.num_values))
    filling_s = 2 * chunk_bytes / _rate(rates[slowest.peer], slowest.kind)
    return Forecast(
        peer=PeerId(plan.peers[slowest.peer]),
        link=slowest.kind,
        link_bytes=slowest.num_bytes,
        link_bytes_per_s=slowest.bytes_per_s,
        latency_s=(wan_rtt_s if across else LAN_RTT_S) + filling_s,
        wan_bytes=across,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What one link has to carry."""

    peer: int
    kind: LinkKind
    num_bytes: float
    bytes_per_s: float


def _by_line(
    works: Sequence[_Work], sites: Sequence[Indices], active: frozenset[int]
) -> list[_Work]:
    """The same with one line for each site; its rate is that of those who contribute, or of all."""
    joined = [work for work in works if work.kind.startswith("lan")]
    kinds: tuple[LinkKind, LinkKind] = ("wan up", "wan down")
    for site in sites:
        senders = active.intersection(site) or frozenset(site)
        for kind in kinds:
            parts = [work for work in works if work.kind == kind and work.peer in site]
            rate = sum(work.bytes_per_s for work in parts if work.peer in senders)
            joined.append(_Work(min(senders), kind, sum(work.num_bytes for work in parts), rate))
    return joined


def _rate(rates: Rates, kind: LinkKind) -> float:
    match kind:
        case "wan up":
            return rates.up
        case "wan down":
            return rates.down
        case _:
            return rates.lan


def predicted_s(
    plan: Plan,
    contributors: Collection[str],
    links: Mapping[PeerId, PeerLinks],
    payload: Payload,
    *,
    wan_rtt_s: float = WAN_RTT_S,
) -> float:
    """Seconds that a plan takes over these links, from the first byte to the last mean."""
    return predict(plan, contributors, links, payload, wan_rtt_s=wan_rtt_s).total_s
