"""What the lanes of a host need to know."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from typing import Final

from zoonet.errors import ConfigError

MAX_STRIPES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LanesConfig:
    """Where lanes are accepted, which paths they may take, and how patient they are.

    Raises ConfigError for what is no IP address, port or duration.
    """

    # IP addresses to accept lanes on; empty for a peer that only dials.
    hosts: tuple[str, ...] = ("0.0.0.0",)
    # TCP port; 0: any free one.
    port: int = 0
    # More IP addresses at which others reach that port (port forwarding).
    announce: tuple[str, ...] = ()
    # Shared memory with peers of this machine.
    use_shm: bool = sys.platform == "linux"
    # TLS connections of our own; without them bytes go over the transport's streams.
    use_direct: bool = True
    # For a stranger to say what it was told to say, and then to finish the handshake.
    token_timeout_s: float = 5.0
    handshake_timeout_s: float = 10.0
    # For any byte of a message to move.
    stall_timeout_s: float = 15.0
    # A payload may take the stall timeout and as long as this rate needs.
    least_bytes_per_s: float = 8 * 1024.0
    # For a sink to say where a payload goes.
    patience_s: float = 8.0
    # Before a lane takes a stream instead of a connection that does not come about.
    direct_timeout_s: float = 4.0
    # Before the next lane to the same peer tries again for a better path than a stream.
    retry_direct_after_s: float = 60.0
    # For the other side to be dialled, before it is asked to dial back meanwhile.
    head_start_s: float = 0.25
    # Connections a lane has where the round trip is at least `long_rtt_s`; else it has one. Where
    # several such lanes send at once, each of them uses as many as suit their line together.
    num_stripes: int = 4
    long_rtt_s: float = 0.005
    # Incoming, of all peers together: each of them has a thread.
    max_connections: int = 1024

    def __post_init__(self) -> None:
        for text in (*self.hosts, *self.announce):
            try:
                ipaddress.ip_address(text)
            except ValueError as error:
                raise ConfigError(f"{text!r} is not an IP address for bulk data") from error
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the port for bulk data is {self.port}, not one of 0 to 65535")
        if not 1 <= self.num_stripes <= MAX_STRIPES:
            raise ConfigError(f"a lane has 1 to {MAX_STRIPES} connections")
        if self.max_connections < 1:
            raise ConfigError("lanes need at least one connection")
        durations = (
            self.token_timeout_s,
            self.handshake_timeout_s,
            self.stall_timeout_s,
            self.patience_s,
            self.direct_timeout_s,
            self.least_bytes_per_s,
        )
        if min(durations) <= 0 or min(self.retry_direct_after_s, self.head_start_s) < 0:
            raise ConfigError("timeouts and rates of lanes are above 0")
