"""What a host needs to know before it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zoonet.errors import ConfigError
from zoonet.net.addresses import (
    PeerAddress,
    is_loopback,
    parse_listen_address,
    parse_peer_address,
)

MAX_SOCKET_PATH_BYTES: Final = 100  # the kernel's limit is 108 on Linux, 104 on macOS
LONGEST_SOCKET_NAME: Final = "p2pclient-0123456789abc.sock"
MAX_RELAYS: Final = 16
_PLAIN_ADDRESS: Final = re.compile(
    r"^/(ip4|ip6|dns|dns4|dns6)/[^/]+/(tcp/\d+|udp/\d+/quic-v1)/p2p/[^/]+$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """How a host listens, whom it joins and where it keeps its sockets.

    Raises ConfigError for malformed addresses and contradictory wishes.
    """

    # Sockets and the daemon's key file live here, mode 0700; swept at start, emptied at the end.
    run_dir: Path
    # Addresses to listen on; empty for a client that only dials.
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    # TCP port for bulk data, at the IP addresses of `listen`; 0: any free one.
    bulk_port: int = 0
    # Bulk data to peers of this machine through shared memory, where the system can.
    use_shm: bool = True
    # Addresses to tell others instead of those listened on (port forwarding, a name).
    announce: tuple[str, ...] = ()
    # Peers to join, each with its /p2p/<id>; tried all at once, and again while they are down.
    bootstrap: tuple[str, ...] = ()
    # Peers met before; also tried, and also asked to relay. Others told us these: what is
    # malformed among them is passed over.
    known_peers: tuple[str, ...] = ()
    # On a public address: says so, and relays for others.
    is_public: bool = False
    # Behind NAT or in a notebook: stores nothing for others, reached through relays.
    is_client: bool = False
    # Raise PeerUnreachable where none of `bootstrap` and `known_peers` answers.
    require_peers: bool = False
    # For the daemon to answer; loaded laptops are slow.
    startup_timeout_s: float = 120.0
    # Between two looks at the swarm: lost bootstraps, new DHT nodes, records to store again.
    upkeep_interval_s: float = 15.0

    def __post_init__(self) -> None:
        for text in (*self.listen, *self.announce):
            parse_listen_address(text)
        for text in self.announce:
            if "/tcp/0" in text or "/udp/0" in text:
                raise ConfigError(f"cannot announce {text!r}: name the port that others reach")
        for text in self.bootstrap:
            parse_peer_address(text)
        if not 0 <= self.bulk_port <= 65535:
            raise ConfigError(f"the port for bulk data is {self.bulk_port}, not one of 0 to 65535")
        if self.is_public and self.is_client:
            raise ConfigError("a peer is either public or a client behind NAT, not both")
        if self.is_public and not self.listen:
            raise ConfigError("a public peer must listen: give it an address and a port")
        if self.startup_timeout_s <= 0 or self.upkeep_interval_s <= 0:
            raise ConfigError("timeouts and intervals are seconds above 0")
        longest = len(str(self.run_dir.absolute() / LONGEST_SOCKET_NAME).encode())
        if longest > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"the run directory {self.run_dir} is too long for sockets "
                f"({longest} bytes, at most {MAX_SOCKET_PATH_BYTES}); choose a shorter one"
            )

    @property
    def is_local(self) -> bool:
        """Whether it listens on this machine alone."""
        return bool(self.listen) and all(is_loopback(text) for text in self.listen)

    @property
    def join_addresses(self) -> tuple[PeerAddress, ...]:
        """Where to look for the swarm: every usable address, each once."""
        usable = {}
        for text in (*self.bootstrap, *self.known_peers):
            try:
                address = parse_peer_address(text)
            except ConfigError:
                continue
            usable[address.text] = address
        return tuple(usable.values())

    @property
    def relays(self) -> tuple[str, ...]:
        """Peers that may be asked to relay.

        Plain addresses only: the daemon does not start where it cannot read one of these.
        """
        texts = (address.text for address in self.join_addresses)
        return tuple(text for text in texts if _PLAIN_ADDRESS.match(text))[:MAX_RELAYS]
