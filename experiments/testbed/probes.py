"""Is the link between two peers what the benchmark says that it is? Looked at before every run."""

from __future__ import annotations

import asyncio
import socket
import statistics
import struct
import time
from dataclasses import dataclass
from typing import Final

from experiments.testbed import kernel
from experiments.testbed.bed import Bed

NUM_ECHOES: Final = 7
ANSWER_S: Final = 2.0
BURST_S: Final = 0.25  # how long a probe of the rate fills the link
RTT_TOLERANCE: Final = 0.06
RATE_TOLERANCE: Final = 0.03
_UDP_HEADER_BYTES: Final = 28  # with IP's
_SO_TIMESTAMPNS: Final = 35  # Linux: the kernel notes when a packet has come


@dataclass(frozen=True, slots=True)
class Looked:
    """What a link between two peers was found to be."""

    rtt_s: float
    rate_bits_per_s: float

    def complaint(self, bed: Bed, wanted: float | None = None) -> str:
        """What is wrong with it; empty where it is as promised.

        `wanted` is its rate in bits a second where that is not every link's.
        """
        link = bed.link
        if abs(self.rtt_s - link.rtt_s) > RTT_TOLERANCE * link.rtt_s + 0.001:
            return f"RTT {self.rtt_s * 1e3:.1f} ms, not {link.rtt_s * 1e3:.1f}"
        wanted = link.rate_bits_per_s if wanted is None else wanted
        if wanted and abs(self.rate_bits_per_s - wanted) > RATE_TOLERANCE * wanted:
            return f"rate {self.rate_bits_per_s / 1e6:.1f} Mbit/s, not {wanted / 1e6:.1f}"
        return ""


async def look(bed: Bed, near: int = 0, far: int | None = None) -> Looked:
    """Measure RTT and rate of the way from a peer to another. Takes about a second.

    Without a word the peers are the first ones of the first two sites.
    """
    there = bed.layout.members(1).start if far is None else far
    return await asyncio.to_thread(_look, bed, near, there)


def _look(bed: Bed, near: int, far: int) -> Looked:
    here = kernel.inside(bed.namespace_of(near), udp_socket)
    there = kernel.inside(bed.namespace_of(far), udp_socket)
    with here, there:
        here.bind((bed.layout.address_of(near), 0))
        there.bind((bed.layout.address_of(far), 0))
        rtt_s = statistics.median(_echo_s(here, there) for _ in range(NUM_ECHOES))
        rate = bed.link.rate_bits_per_s and _rate(here, there, bed)
    return Looked(rtt_s, rate)


def udp_socket() -> socket.socket:
    """A socket that waits ANSWER_S at most, with room for a burst."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(ANSWER_S)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        made.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    return made


def _echo_s(here: socket.socket, there: socket.socket) -> float:
    began = time.perf_counter()
    here.sendto(b"there", there.getsockname())
    there.recv(16)
    there.sendto(b"back", here.getsockname())
    here.recv(16)
    return time.perf_counter() - began


def _rate(here: socket.socket, there: socket.socket, bed: Bed) -> float:
    """Fill the way for a moment; the rate is that at which packets come out."""
    packet = bytes(bed.link.mtu_bytes - _UDP_HEADER_BYTES)
    allowance_s = 0.004  # what the bucket lets through at once, and a little more
    num_packets = int(bed.link.rate_bits_per_s * BURST_S / 8 / bed.link.mtu_bytes)
    num_packets = max(40, min(num_packets, bed.link.queue_bytes // bed.link.mtu_bytes - 4))
    for _ in range(num_packets):
        here.sendto(packet, there.getsockname())
    there.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    arrivals: list[float] = []
    try:
        while len(arrivals) < num_packets:
            arrivals.append(_arrival(there))
    except TimeoutError:
        pass  # some were lost: the rate of the others still tells
    steady = [at for at in arrivals if at > arrivals[0] + allowance_s] if arrivals else []
    if len(steady) < 10:
        return 0.0
    return (len(steady) - 1) * 8 * bed.link.mtu_bytes / (steady[-1] - steady[0])


def _arrival(there: socket.socket) -> float:
    """Take one packet; return when the kernel got it, whenever this process looked."""
    _, notes, _, _ = there.recvmsg(2048, 64)
    seconds, nanoseconds = struct.unpack("@qq", notes[0][2])
    return int(seconds) + int(nanoseconds) / 1e9
