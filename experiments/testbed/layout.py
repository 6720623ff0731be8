"""Where the peers of a benchmark are, and what their sites' links carry. Pure.

A site is a local network; sites are joined by an internet that delays every packet. Each site's
way up and its way down have a rate. S is the payload of one peer, n the number of peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TCP_HEADER_BYTES: Final = 52  # IPv4 20, TCP 20, timestamps 12
MAX_SITES: Final = 100
MAX_PEERS_PER_SITE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a site is joined to the others. Raises ValueError for what cannot be built."""

    # Of each site's way up and, separately, its way down, IP headers included. 0: not shaped.
    rate_bits_per_s: float = 100e6
    # Between peers of two sites, there and back. 0: no delay line, everyone is in one place.
    rtt_s: float = 0.05
    # Largest IP packet between sites.
    mtu_bytes: int = 1500
    # Of every peer's TCP.
    congestion_control: str = "bbr"
    # What may wait before either way of a site; at least two products of rate and RTT.
    least_queue_bytes: int = 256_000

    def __post_init__(self) -> None:
        if self.rate_bits_per_s < 0 or self.rtt_s < 0 or not 576 <= self.mtu_bytes <= 9000:
            raise ValueError(f"a link of {self} cannot be built")

    @property
    def payload_share(self) -> float:
        """The part of a full packet that is not TCP's and IP's headers."""
        return (self.mtu_bytes - TCP_HEADER_BYTES) / self.mtu_bytes

    @property
    def queue_bytes(self) -> int:
        """What waits before either way of a site at most."""
        product = int(self.rate_bits_per_s / 8 * self.rtt_s)
        return max(2 * product, self.least_queue_bytes)

    def ideal_s(self, num_bytes: float) -> float:
        """How long so many payload bytes take in one direction at best: rate and 2 RTT."""
        return num_bytes * 8 / (self.rate_bits_per_s * self.payload_share) + 2 * self.rtt_s


@dataclass(frozen=True, slots=True)
class Layout:
    """How many peers each site has. Peers are numbered through, site by site."""

    sites: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sites) <= MAX_SITES:
            raise ValueError(f"{len(self.sites)} sites, expected 1 to {MAX_SITES}")
        if not all(1 <= size <= MAX_PEERS_PER_SITE for size in self.sites):
            raise ValueError(f"sites of {self.sites} peers, expected 1 to {MAX_PEERS_PER_SITE}")

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read "5+2+1" (three sites) or "6x4" (four sites of six). Raises ValueError."""
        if "x" in text:
            size, _, count = text.partition("x")
            return cls((int(size),) * int(count))
        return cls(tuple(int(size) for size in text.split("+")))

    @property
    def num_peers(self) -> int:
        """Peers of all sites together."""
        return sum(self.sites)

    def members(self, site: int) -> range:
        """Numbers of the peers of a site."""
        first = sum(self.sites[:site])
        return range(first, first + self.sites[site])

    def site_of(self, peer: int) -> int:
        """The peer's site."""
        return next(site for site in range(len(self.sites)) if peer in self.members(site))

    def address_of(self, peer: int) -> str:
        """The peer's IPv4 address; its second byte says where it is."""
        site = self.site_of(peer)
        return f"10.{FIRST_NET + site}.0.{FIRST_HOST + peer - self.members(site).start}"

    def gateway_of(self, site: int) -> str:
        """Address of the site's router."""
        return f"10.{FIRST_NET + site}.0.1"

    # --- how many bytes must cross between sites, of which every byte counts once ---------------

    def least_bytes(self, payload_bytes: float) -> float:
        """2 (s - 1) S: each site's sum goes up once, and the mean comes down once."""
        return 2 * (len(self.sites) - 1) * payload_bytes

    def butterfly_bytes(self, payload_bytes: float) -> float:
        """2 S (n - sum(n_k^2) / n): every peer reduces a slice, wherever the others are."""
        num_peers = self.num_peers
        squares = sum(size * size for size in self.sites)
        return 2 * payload_bytes * (num_peers - squares / num_peers)

    def ring_bytes(self, payload_bytes: float) -> float:
        """2 s S (n - 1) / n: a ring that keeps sites together crosses as often as there are any."""
        if len(self.sites) == 1:
            return 0.0
        return 2 * len(self.sites) * payload_bytes * (self.num_peers - 1) / self.num_peers


FIRST_NET: Final = 100
FIRST_HOST: Final = 10
