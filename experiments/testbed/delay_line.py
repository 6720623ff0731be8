"""The internet between sites: takes each packet in at one site and hands it out at another, later.

    python -m experiments.testbed.delay_line

One process holds a TUN device inside every site's namespace. The kernel's own shapers stand before
it, so packets come at the right rate; here each gets an instant at which it is due. On stdin comes
one JSON line that says what to join; each later line asks for figures, and the end of stdin ends
the process.
"""

from __future__ import annotations

import fcntl
import gc
import heapq
import json
import os
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from experiments.testbed.kernel import TUN_DEVICE, inside
from experiments.testbed.layout import FIRST_NET

_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001  # IFF_TUN | IFF_NO_PI
INTERFACE: Final = "wan"
STDIN: Final = 0
TICK_S: Final = 0.0004  # packets are fetched and handed out in batches, this far apart
LATE_S: Final = 0.003  # beyond this the line did not keep its promise


@dataclass(slots=True)
class Figures:
    """What the line has done since it was last asked."""

    num_packets: int = 0
    num_bytes: int = 0
    num_late: int = 0
    num_lost: int = 0  # could not be handed out, or were for nobody
    largest_lateness_s: float = 0.0


class DelayLine:
    """Joins TUN devices. `delays_s[a][b]` is how long packets from site a to site b take."""

    def __init__(self, devices: list[int], delays_s: list[list[float]], mtu_bytes: int) -> None:
        self._devices = devices
        # A packet waits half a tick to be fetched and half a tick to be handed out, on average.
        self._delays_s = [[max(0.0, delay_s - TICK_S) for delay_s in row] for row in delays_s]
        self._read_bytes = mtu_bytes + 4
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self.figures = Figures()

    def serve(self) -> None:
        """Carry packets until stdin ends."""
        readable = [*self._devices, STDIN]
        while True:
            timeout_s = None if not self._waiting else self._until_next_s()
            ready, _, _ = select.select(readable, (), (), timeout_s)
            if STDIN in ready and not self._answer(os.read(STDIN, 4096)):
                return
            self._fetch()
            self._hand_out()
            if self._waiting or ready:
                time.sleep(TICK_S)

    def _until_next_s(self) -> float:
        return max(0.0, self._waiting[0][0] - time.monotonic())

    def _answer(self, asked: bytes) -> bool:
        """Print the figures and begin new ones; False where nobody will ask again."""
        if not asked:
            return False
        figures, self.figures = self.figures, Figures()
        print(json.dumps({name: getattr(figures, name) for name in Figures.__slots__}), flush=True)
        return True

    def _fetch(self) -> None:
        """Take in everything that the sites have sent."""
        now = time.monotonic()
        figures, waiting, read_bytes = self.figures, self._waiting, self._read_bytes
        number, num_sites = self._number, len(self._devices)
        for source, device in enumerate(self._devices):
            delays_s = self._delays_s[source]
            try:
                while True:
                    packet = os.read(device, read_bytes)
                    site = packet[17] - FIRST_NET if len(packet) >= 20 else -1
                    if packet[0] >> 4 != 4 or not 0 <= site < num_sites:
                        figures.num_lost += 1
                        continue
                    number += 1
                    heapq.heappush(waiting, (now + delays_s[site], number, site, packet))
            except BlockingIOError:
                pass  # this one is empty
        self._number = number

    def _hand_out(self) -> None:
        """Give the sites what is due."""
        now = time.monotonic()
        figures, waiting, devices = self.figures, self._waiting, self._devices
        while waiting and waiting[0][0] <= now:
            due, _, site, packet = heapq.heappop(waiting)
            try:
                figures.num_bytes += os.write(devices[site], packet)
            except OSError:  # the interface is down, or its queue is full: as on any link
                figures.num_lost += 1
                continue
            figures.num_packets += 1
            lateness_s = now - due
            if lateness_s > LATE_S:
                figures.num_late += 1
                figures.largest_lateness_s = max(figures.largest_lateness_s, lateness_s)


def open_tun(namespace: str) -> int:
    """Make the TUN device `wan` inside a namespace; it is gone when the descriptor is closed."""

    def make() -> int:
        descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", INTERFACE.encode(), _TUN_WITHOUT_HEADER)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        return descriptor

    return inside(namespace, make)


def hurry() -> str:
    """Come before ordinary processes: an internet does not slow down when a peer computes."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        os.nice(-10)
        return "nice -10"
    return "real-time"


def main() -> None:
    """Read what to join from stdin, and join it."""
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    devices = [open_tun(namespace) for namespace in wanted["namespaces"]]
    line = DelayLine(devices, wanted["delays_s"], wanted["mtu_bytes"])
    print(json.dumps({"is": "ready", "priority": hurry()}), flush=True)
    gc.disable()  # nothing here makes cycles
    line.serve()


if __name__ == "__main__":
    main()
