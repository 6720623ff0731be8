"""The line that a host has to the rest of the world: all links to faraway peers share it.

Links that take turns on one line add up to more than the line carries, so it is metered as one:
bytes over the time in which any of its links had something to carry.
"""

from __future__ import annotations

import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection, tcp_info
from zoonet.transport.lanes import LineStats

SAMPLE_S: Final = 0.5  # of a line at work: several round trips, so that bursts even out
NUM_SAMPLES: Final = 16
BEST: Final = 4  # the best quarter of them is left out: the line, not its best moment
LOOK_S: Final = 0.05  # between two looks at what has been sent
LONGEST_LOOK_S: Final = 0.5  # what lies between two looks farther apart is not known
GAP_S: Final = 0.05  # between two arrivals on a line at work, at least
NUM_RECORDS: Final = 4  # that arrive within a gap, on a line that is slow
RECORD_BYTES: Final = 16 * 1024
FIRST_GAP_S: Final = 0.5  # while nothing is known of the line
LEAST_WINDOW_BYTES: Final = 16 * 1448  # under way on a connection, so that it can recover a loss
FILLING: Final = 1.5  # how many products of rate and round trip may be under way on a shared line
MAX_CONNECTIONS: Final = 64  # over the line, before lanes have just one each
_ACKED: Final = (120, "=Q")  # in Linux' struct tcp_info
_UNSENT: Final = (144, "=I")


def num_stripes(most: int, num_lanes: int, product_bytes: float) -> int:
    """How many connections each of several lanes may use that share a line.

    `product_bytes` is the line's rate times its round trip, 0 where that is not known. Where there
    are so many connections that hardly a packet of each is under way, one lost packet silences a
    connection for as long as its timer takes, and each of them pushes its least window into the
    line's queue. So there are no more than windows of a decent size fit into the line, but `most`
    of them together in any case, and one for each lane.
    """
    budget = max(most, int(product_bytes / LEAST_WINDOW_BYTES))
    return max(1, min(most, budget // max(1, num_lanes)))


def window_bytes(num_connections: int, product_bytes: float) -> int:
    """How much each of several connections may have under way that share a line; 0: no limit.

    Each connection alone probes for more than it has, and together they fill any queue and lose a
    tenth of what they send. Limited, they fill the line and half a round trip of its queue, and
    still go up to one and a half times as fast if the line turns out to be faster.
    """
    if num_connections < 2 or not product_bytes:
        return 0
    return max(LEAST_WINDOW_BYTES, int(FILLING * product_bytes / num_connections))


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the kernel says of a sending connection."""

    acked_bytes: int  # so far
    unsent_bytes: int  # that it has not sent once


def backlog_of(connection: Connection) -> Backlog | None:
    """None where the kernel does not tell."""
    info = tcp_info(connection.socket)
    if len(info) < 148:
        return None
    (acked_bytes,) = struct.unpack_from(_ACKED[1], info, _ACKED[0])
    (unsent_bytes,) = struct.unpack_from(_UNSENT[1], info, _UNSENT[0])
    return Backlog(acked_bytes, unsent_bytes)


class Samples:
    """The upper quartile of a rate's last samples.

    A line is seen at its best where it is the bottleneck, so lower samples say less than higher
    ones: most of them are of times when it waited for somebody else's line.
    """

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=NUM_SAMPLES)
        self._num_bytes = 0
        self._seconds = 0.0
        self.bytes_per_s = 0.0  # 0 while nothing is known

    def add(self, num_bytes: int, seconds: float) -> None:
        """A line at work has carried that much in that time."""
        self._num_bytes += num_bytes
        self._seconds += seconds
        if self._seconds >= SAMPLE_S:
            self._samples.append(self._num_bytes / self._seconds)
            self.bytes_per_s = sorted(self._samples)[-1 - len(self._samples) // BEST]
            self._num_bytes, self._seconds = 0, 0.0


class Sending(Protocol):
    """A lane, as far as its line needs to know it."""

    @property
    def unsent_bytes(self) -> int: ...


class Line:
    """What goes over a host's line and comes over it. Thread-safe."""

    def __init__(
        self,
        config: LanesConfig,
        now: Callable[[], float] = time.monotonic,
        backlog: Callable[[Connection], Backlog | None] = backlog_of,
    ) -> None:
        self._long_rtt_s = config.long_rtt_s
        self._most = config.num_stripes
        self._now = now
        self._backlog = backlog
        self._lock = threading.Lock()
        self._sent = Samples()
        self._received = Samples()
        self._arrived = -FIRST_GAP_S
        self._lanes: weakref.WeakSet[Sending] = weakref.WeakSet()
        self._seen: dict[Connection, Backlog | None] = {}
        self._looked = -LONGEST_LOOK_S

    def leads_to(self, connection: Connection) -> bool:
        """Whether the other side is far away, so that the connection goes over this line."""
        rtt_s = connection.rtt_s()
        return rtt_s > 0 and rtt_s >= self._long_rtt_s

    # --- sending --------------------------------------------------------------------------------

    def begin(self, connection: Connection) -> None:
        """The connection may send from now on."""
        with self._lock:
            self._seen[connection] = None

    def end(self, connection: Connection) -> None:
        """It is gone."""
        with self._lock:
            self._seen.pop(connection, None)

    def carries(self, lane: Sending) -> None:
        """The lane sends over this line, for as long as it lives."""
        with self._lock:
            self._lanes.add(lane)

    @property
    def has_room(self) -> bool:
        """Whether a lane may have more connections than one."""
        return len(self._seen) < MAX_CONNECTIONS

    def num_stripes(self, rtt_s: float) -> int:
        """How many connections a lane may use now, by how many lanes have something to send."""
        return num_stripes(self._most, self._num_busy(), self._sent.bytes_per_s * rtt_s)

    def window_bytes(self, rtt_s: float) -> int:
        """How much a connection may have under way now; 0: as much as it likes."""
        num_busy, product_bytes = self._num_busy(), self._sent.bytes_per_s * rtt_s
        if num_busy < 2:
            return 0
        return window_bytes(
            num_busy * num_stripes(self._most, num_busy, product_bytes), product_bytes
        )

    def part_bytes_per_s(self, rtt_s: float) -> float:
        """What each connection of a lane has that has the line to itself.

        0 while that is not known, and where several lanes share it: these keep to their windows.
        By the faster of the line's two ways, since an all-reduce needs both alike, and one that
        was starved by the other is thought to be slow.
        """
        if not self._sent.bytes_per_s or self._num_busy() > 1:
            return 0.0
        rate = max(self._sent.bytes_per_s, self._received.bytes_per_s)
        return rate / num_stripes(self._most, 1, rate * rtt_s)

    def _num_busy(self) -> int:
        with self._lock:
            return sum(lane.unsent_bytes > 0 for lane in self._lanes)

    def look(self) -> None:
        """See what has been sent, if it is time to. Costs a microsecond for each connection.

        Time counts in which some connection had more to send all along: then it was the line, or
        what comes after it, that was waited for, and not whoever makes what is sent.
        """
        with self._lock:
            now = self._now()
            elapsed_s = now - self._looked
            if elapsed_s < LOOK_S:
                return
            acked_bytes, had_more = 0, False
            for connection, old in self._seen.items():
                self._seen[connection] = new = self._backlog(connection)
                if old is not None and new is not None:
                    acked_bytes += new.acked_bytes - old.acked_bytes
                    had_more |= bool(old.unsent_bytes and new.unsent_bytes)
            self._looked = now
            if had_more and elapsed_s <= LONGEST_LOOK_S:
                self._sent.add(acked_bytes, elapsed_s)

    # --- receiving ------------------------------------------------------------------------------

    def arrived(self, num_bytes: int, now: float) -> None:
        """So much has just come over one of the connections."""
        with self._lock:
            rate = self._received.bytes_per_s
            gap_s = max(GAP_S, NUM_RECORDS * RECORD_BYTES / rate) if rate else FIRST_GAP_S
            elapsed_s = now - self._arrived
            self._arrived = now
            if 0 <= elapsed_s <= gap_s:
                self._received.add(num_bytes, elapsed_s)

    def stats(self) -> LineStats:
        """The figures now; zero where nothing is known."""
        return LineStats(self._sent.bytes_per_s, self._received.bytes_per_s)
