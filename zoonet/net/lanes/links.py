"""What real traffic tells of the link to a peer: its round trip and how fast it carries bytes."""

from __future__ import annotations

import math
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from zoonet.net.lanes.connection import Connection, Ear, tcp_info
from zoonet.net.lanes.line import Line
from zoonet.net.lanes.pace import Pace
from zoonet.transport.lanes import LinkStats, Path

SHM_RTT_S: Final = 50e-6  # there is no way to measure: what takes longer is a busy scheduler
SAMPLE_BYTES: Final = 1024 * 1024  # received before a rate is believed
SAMPLE_S: Final = 0.05  # busy for at least as long: a burst out of a buffer is no link's speed
GAP_S: Final = 0.05  # between two arrivals: the wire may have been busy, and this thread late
KERNEL_SAMPLE_BYTES: Final = 256 * 1024
KERNEL_INTERVAL_S: Final = 0.25
SLACK: Final = 0.2  # a window is not changed for less
TOLERANCE: Final = 0.005  # nor a pace
RISE: Final = 0.5  # how much of a sample counts that is above, or below, what was believed:
FALL: Final = 0.2  # a link is as fast as its best moments, others may have used it in between
_ACKED_AND_BUSY: Final = ((120, "=Q"), (168, "=Q"))  # in Linux' struct tcp_info: bytes and us


def smoothed(believed: float, sample: float) -> float:
    """What to believe of a rate after another sample of it."""
    if believed <= 0:
        return sample
    return believed + (RISE if sample > believed else FALL) * (sample - believed)


class Rate:
    """Bytes a second while at least one connection is busy. Thread-safe.

    It also counts as busy for pauses of up to `gap_s`.
    """

    def __init__(self, gap_s: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = gap_s
        self._now = now
        self._lock = threading.Lock()
        self._num_busy = 0
        self._since = -math.inf  # accounted up to here
        self._busy_s = 0.0
        self._num_bytes = 0
        self.bytes_per_s = 0.0

    def begin(self) -> None:
        """A connection starts to carry something."""
        with self._lock:
            now = self._now()
            if not self._num_busy and now - self._since > self._gap_s:
                self._since = now
            self._num_busy += 1

    def end(self, num_bytes: int, *, is_idle: bool = True) -> None:
        """It has carried that much more, and now carries nothing, unless it goes on."""
        with self._lock:
            now = self._now()
            self._num_busy -= is_idle
            self._busy_s += now - self._since
            self._since = now
            self._num_bytes += num_bytes
            if self._num_bytes >= SAMPLE_BYTES and self._busy_s >= SAMPLE_S:
                sample = self._num_bytes / self._busy_s
                self.bytes_per_s = smoothed(self.bytes_per_s, sample)
                self._num_bytes, self._busy_s = 0, 0.0


class LinkMeter:
    """The figures of one peer. Thread-safe."""

    def __init__(self, line: Line | None = None) -> None:
        self.line = line
        self._lock = threading.Lock()
        self._incoming: set[Connection] = set()
        self._by_connection: dict[Connection, float] = {}
        self._kernel_up = 0.0
        self.sent = Rate()  # as far as this process can tell: until the kernel has taken it
        self.received = Rate(GAP_S)
        self.ear = Ear()
        self.rtt_s = 0.0
        self.path: Path | None = None  # no lane yet

    def meets(self, connection: Connection, path: Path) -> None:
        """A connection to the peer begins to carry a lane."""
        connection.ear = self.ear
        self.path = path
        self.rtt_s = SHM_RTT_S if path == "shm" else connection.rtt_s() or self.rtt_s

    def listens(self, connection: Connection, path: Path) -> None:
        """The same of one that the peer sends over; `forget` it in the end."""
        self.meets(connection, path)
        with self._lock:
            self._incoming.add(connection)
        if self.line is not None and self.line.leads_to(connection):
            self.ear.tells = self.line.arrived

    def silent_s(self) -> float:
        """Seconds since the last byte came from the peer, even if nobody has read it yet."""
        with self._lock:
            quiet_s = min((one.quiet_s() for one in self._incoming), default=math.inf)
        return min(quiet_s, time.monotonic() - self.ear.heard_s)

    def sends_at(self, connection: Connection, bytes_per_s: float) -> None:
        """One of the connections to the peer sends at that rate, by the kernel's own account."""
        with self._lock:
            self._by_connection[connection] = bytes_per_s
            self._kernel_up = smoothed(self._kernel_up, sum(self._by_connection.values()))

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        with self._lock:
            self._by_connection.pop(connection, None)
            self._incoming.discard(connection)

    def stats(self) -> LinkStats:
        """The figures now; zero where nothing is known."""
        return LinkStats(
            rtt_s=self.rtt_s,
            up_bytes_per_s=self._kernel_up or self.sent.bytes_per_s,
            down_bytes_per_s=self.received.bytes_per_s,
            path=self.path or "stream",
        )


class KernelProbe:
    """Asks the kernel now and then how fast a TCP connection sends while it has something to."""

    def __init__(self, connection: Connection, meter: LinkMeter) -> None:
        self._connection = connection
        self._meter = meter
        self._line = meter.line
        self._rtt_s = connection.rtt_s()
        self._window_bytes = 0
        self._pace = Pace()
        self._paced_at = 0.0
        if self._line is not None and self._line.leads_to(connection):
            self._line.begin(connection)
        else:
            self._line = None
        self._next = 0.0
        self._acked_bytes = self._busy_us = 0
        self.bytes_per_s = 0.0  # of this connection; 0 while unknown

    @property
    def is_far(self) -> bool:
        """Whether the connection goes over the host's line."""
        return self._line is not None

    def look(self) -> None:
        """Take a sample if it is time for one. Costs a microsecond, or one for each connection."""
        now = time.monotonic()
        if self._line is not None:
            self._line.look()
            self._fit(self._line.window_bytes(self._rtt_s))
            self._keep_pace(now, self._line.part_bytes_per_s(self._rtt_s))
        if now < self._next:
            return
        self._next = now + KERNEL_INTERVAL_S
        info = tcp_info(self._connection.socket)
        if len(info) < 176:
            return
        acked_bytes, busy_us = (
            int(struct.unpack_from(kind, info, offset)[0]) for offset, kind in _ACKED_AND_BUSY
        )
        new_bytes, new_us = acked_bytes - self._acked_bytes, busy_us - self._busy_us
        if new_bytes >= KERNEL_SAMPLE_BYTES and new_us > 0:
            self.bytes_per_s = new_bytes / new_us * 1e6
            self._meter.sends_at(self._connection, self.bytes_per_s)
            self._meter.rtt_s = self._connection.rtt_s() or self._meter.rtt_s
            self._acked_bytes, self._busy_us = acked_bytes, busy_us

    def _fit(self, window_bytes: int) -> None:
        """Leave room for the line's other connections, or take what they have left."""
        low, high = (1 - SLACK) * window_bytes, (1 + SLACK) * window_bytes
        if not low <= self._window_bytes <= high:
            self._connection.limit(window_bytes)
            self._window_bytes = window_bytes

    def _keep_pace(self, now: float, part_bytes_per_s: float) -> None:
        """Let no queue stand before the line."""
        rtt_s, least_rtt_s = self._connection.rtts_s()
        rate = self._pace.limit(now, rtt_s, least_rtt_s, part_bytes_per_s)
        if abs(rate - self._paced_at) > TOLERANCE * rate:
            self._connection.pace(rate)
            self._paced_at = rate

    def close(self) -> None:
        """Forget the connection's rate."""
        self._meter.forget(self._connection)
        if self._line is not None:
            self._line.end(self._connection)
