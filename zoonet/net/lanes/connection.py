"""A connected socket that one thread uses, with blocking calls, and any thread may abort."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, cast

from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout, StreamClosed, TransportError
from zoonet.transport.streams import Buffer

KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 1  # several are sent before the timeout below: one may be lost
KEEPALIVE_COUNT: Final = 5
USER_TIMEOUT_MS: Final = 15_000  # for sent bytes, and probes after an idle time, to be answered
# Bytes that the kernel may hold unsent: what waits above it can still be dropped.
NOT_SENT_BYTES: Final = 256 * 1024
LAST_DATA_RECEIVED_OFFSET: Final = 52  # in Linux' struct tcp_info
SMOOTHED_RTT_OFFSET: Final = 68
MIN_RTT_OFFSET: Final = 148
NUM_SEGMENTS_OFFSET: Final = 152  # with payload, received
OFTEN_S: Final = 0.5  # asked again within this time
SO_MAX_PACING_RATE: Final = 47  # of Linux
NO_RATE: Final = (1 << 64) - 1
SO_BUF_LOCK: Final = 72  # of Linux since 5.15: whether the kernel may change a buffer's size
TIMED_OUT: Final = (TimeoutError, BlockingIOError)  # by Python's clock, or by the kernel's


def tune(connection: socket.socket) -> None:
    """Set what every bulk TCP connection has.

    Buffer sizes are left alone: the kernel grows them to the bandwidth-delay product up to
    tcp_rmem and tcp_wmem, while setting them would switch that off and stop at rmem_max.
    """
    options = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_COUNT),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
        (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", NOT_SENT_BYTES),
    )
    for level, name, value in options:
        if (option := getattr(socket, name, None)) is not None:
            with contextlib.suppress(OSError):  # not on every system
                connection.setsockopt(level, option, value)


class Doorbell:
    """Wakes a thread that waits for a socket. Anyone may ring."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        """Let the next or current wait end."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    def clear(self) -> None:
        """Forget all rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """Let go of the descriptors; nobody may ring any more."""
        for descriptor in {self._read, self._write}:
            os.close(descriptor)


class Ear:
    """When a byte of a peer came last, on the monotonic clock; never yet at first."""

    def __init__(self) -> None:
        self.heard_s = -math.inf
        self.tells: Callable[[int, float], None] | None = None  # whoever counts bytes, too

    def hear(self, num_bytes: int) -> float:
        """So many bytes have come: now, which is returned."""
        now = self.heard_s = time.monotonic()
        if self.tells is not None:
            self.tells(num_bytes, now)
        return now


class Connection:
    """A TLS or local socket to a known peer. Errors are PeerTimeout and StreamClosed.

    Only the thread that uses it may `close`; `abort` wakes that thread from elsewhere.
    """

    def __init__(self, sock: socket.socket, peer_id: PeerId, *, stall_timeout_s: float) -> None:
        _set_timeout(sock, stall_timeout_s)
        self.socket = sock
        self.peer_id = peer_id
        self.ear = Ear()
        self.num_read = 0  # bytes of the last `read` that have come so far
        self._lock = threading.Lock()
        self._is_closed = False
        self._poll: select.poll | None = None
        self._num_segments = 0
        self._asked = self._counted = -math.inf
        self._receive = _receiver(sock)

    def write(self, payload: Buffer) -> None:
        """Hand everything to the kernel; each call may take the stall timeout."""
        try:
            self.socket.sendall(payload)
        except TIMED_OUT as error:
            raise PeerTimeout(f"peer={short(self.peer_id)} takes no bytes") from error
        except (OSError, ValueError) as error:
            raise self.lost(error) from error

    def read(self, target: memoryview, deadline: float) -> None:
        """Fill the target before `deadline`. Also raises PeerTimeout where no byte moves."""
        receive, hear = self._receive, self.ear.hear
        num_bytes, size = 0, len(target)
        try:
            while num_bytes < size:
                num_new = receive(size - num_bytes, target[num_bytes:])
                self.num_read = num_bytes = num_bytes + num_new
                if not num_new:
                    raise StreamClosed(f"peer={short(self.peer_id)} ended in a message")
                if hear(num_new) > deadline:
                    raise PeerTimeout(f"peer={short(self.peer_id)} sends too slowly")
        except TIMED_OUT as error:
            raise PeerTimeout(f"peer={short(self.peer_id)} stalled in a message") from error
        except (OSError, ValueError) as error:
            raise self.lost(error) from error

    def read_first(self, target: memoryview) -> int:
        """Wait, for as long as it takes, and read at least one byte; 0 where there are no more."""
        while True:
            try:
                num_bytes = self.socket.recv_into(target)
                self.ear.hear(num_bytes)
                return num_bytes
            except TIMED_OUT:
                continue  # an idle lane
            except (OSError, ValueError) as error:
                raise self.lost(error) from error

    def wait(self, doorbell: Doorbell, timeout_s: float | None = None) -> bool:
        """Wait for the bell; tell whether the other side said something or has gone."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(doorbell, select.POLLIN)
            self._poll.register(self.socket, select.POLLIN)
        timeout_ms = None if timeout_s is None else 1e3 * timeout_s
        fired = [descriptor for descriptor, _ in self._poll.poll(timeout_ms)]
        if doorbell.fileno() in fired:
            doorbell.clear()
        return self.socket.fileno() in fired

    def lost(self, error: Exception | None = None) -> TransportError:
        """The error to raise where the connection broke."""
        if error is None:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            why = os.strerror(code) if code else "the other side has gone"
        else:
            why = _words(error)
        return StreamClosed(f"peer={short(self.peer_id)} lane broke: {why}")

    def rtt_s(self) -> float:
        """Least round trip lately, in seconds; 0 where the kernel does not tell."""
        return min(self.rtts_s())

    def rtts_s(self) -> tuple[float, float]:
        """The smoothed round trip and the least one lately; zeros where that is not told."""
        info = tcp_info(self.socket)
        if len(info) < MIN_RTT_OFFSET + 4:
            return 0.0, 0.0
        (least_us,) = struct.unpack_from("=I", info, MIN_RTT_OFFSET)
        (smoothed_us,) = struct.unpack_from("=I", info, SMOOTHED_RTT_OFFSET)
        return smoothed_us / 1e6, (min(least_us, smoothed_us) or smoothed_us) / 1e6

    def quiet_s(self) -> float:
        """Seconds since the last segment with bytes came, read or not; infinite if unknown.

        Bytes that arrive behind a lost segment count where this is called all the time, since the
        kernel tells their number and not their age. Keepalive probes and acknowledgements are none.
        """
        info, now = tcp_info(self.socket), time.monotonic()
        if len(info) < NUM_SEGMENTS_OFFSET + 4:
            return math.inf
        (since_ms,) = struct.unpack_from("=I", info, LAST_DATA_RECEIVED_OFFSET)
        (num_segments,) = struct.unpack_from("=I", info, NUM_SEGMENTS_OFFSET)
        if num_segments != self._num_segments and now - self._asked < OFTEN_S:
            self._counted = now
        self._num_segments, self._asked = num_segments, now
        return float(min(since_ms / 1e3, now - self._counted))

    def limit(self, num_bytes: int) -> None:
        """Let about so many bytes be under way at most; 0 for as many as the kernel likes."""
        option, value = (socket.SO_SNDBUF, num_bytes) if num_bytes else (SO_BUF_LOCK, 0)
        with contextlib.suppress(OSError):  # not on every system
            self.socket.setsockopt(socket.SOL_SOCKET, option, value)

    def pace(self, bytes_per_s: float) -> None:
        """Send no faster than that; 0 for as fast as the kernel likes."""
        rate = struct.pack("=Q", int(bytes_per_s) or NO_RATE)
        with contextlib.suppress(OSError):  # not on every system
            self.socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)

    def abort(self) -> None:
        """Break it off, from any thread: whoever reads or writes gets StreamClosed."""
        with self._lock, contextlib.suppress(OSError):
            if not self._is_closed:
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket. What the kernel has still leaves. Idempotent."""
        with self._lock:
            self._is_closed = True
            self.socket.close()


def _receiver(sock: socket.socket) -> Callable[[int, memoryview], int]:
    """What reads at most so many bytes to a place.

    TLS brings 16 KiB at a time, and `recv_into` does nothing but call `read`.
    """
    if isinstance(sock, ssl.SSLSocket):
        return cast(Callable[[int, memoryview], int], sock.read)  # which returns a number, then
    return lambda num_bytes, target: sock.recv_into(target, num_bytes)


def _set_timeout(sock: socket.socket, timeout_s: float) -> None:
    """Bound every call. For local sockets the kernel does that, which saves a poll each time."""
    if sock.family != socket.AF_UNIX:
        sock.settimeout(timeout_s)
        return
    sock.settimeout(None)
    interval = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


def tcp_info(connection: socket.socket) -> bytes:
    """The kernel's `struct tcp_info`, empty where there is none."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return b""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, option, 256)
    except OSError:
        return b""


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS {error.reason or error}".replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
