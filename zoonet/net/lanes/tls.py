"""Messages over a TLS connection.

A message is its header's length (2 bytes, big-endian), its payload's (4 bytes), the header, zeros
up to the size of a head, and the payload. Payloads are read straight to where they belong, and
sent from where they are. A head has a size that most headers fit into, because each read costs as
much as decrypting ten kilobytes.

A head leaves together with the payload's beginning. Alone it would be a packet below the segment
size, and where that is the first one after a pause of ten seconds, Linux' BBR takes its
acknowledgement for a delayed one, does not renew its least round trip from it, and measures that
again in the middle of what follows: a quarter of a second in which next to nothing is sent.
"""

from __future__ import annotations

import struct
import time
from typing import Final

from zoonet.errors import ProtocolViolation
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection, Doorbell
from zoonet.net.lanes.links import KernelProbe, LinkMeter
from zoonet.transport.lanes import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Path

PREFIX: Final = struct.Struct(">HI")
HEAD_BYTES: Final = 64
RECORD_BYTES: Final = 16 * 1024  # at most, of TLS
PIECE_BYTES: Final = 256 * 1024  # handed over at once; the stall timeout is for one of these
FAR_PIECE_BYTES: Final = 64 * 1024  # the same over a long way, whose pace is looked at in between


def check_sizes(connection: Connection, header_bytes: int, payload_bytes: int) -> None:
    """Raise ProtocolViolation for a message that is too large, before any of it is read."""
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolViolation(
            connection.peer_id,
            f"promised a message of {header_bytes} + {payload_bytes} bytes,"
            f" at most {MAX_HEADER_BYTES} + {MAX_PAYLOAD_BYTES}",
        )


class TlsSender:
    """A `SendingPipe` over a TLS connection."""

    def __init__(self, connection: Connection, meter: LinkMeter) -> None:
        self.connection = connection
        self._meter = meter
        self._probe = KernelProbe(connection, meter)
        self._piece_bytes = FAR_PIECE_BYTES if self._probe.is_far else PIECE_BYTES

    def send(self, header: bytes, payload: memoryview) -> int:
        write, num_bytes = self.connection.write, len(payload)
        piece_bytes = self._piece_bytes
        head = (PREFIX.pack(len(header), num_bytes) + header).ljust(HEAD_BYTES, b"\0")
        num_joined = max(0, min(num_bytes, RECORD_BYTES - len(head)))
        self._meter.sent.begin()
        try:
            write(head + payload[:num_joined])
            for start in range(num_joined, num_bytes, piece_bytes):
                self._probe.look()
                write(payload[start : start + piece_bytes])
        finally:
            self._meter.sent.end(num_bytes)
        self._probe.look()
        return num_bytes

    @property
    def bytes_per_s(self) -> float:
        return self._probe.bytes_per_s

    def wait(self, doorbell: Doorbell, timeout_s: float | None = None) -> int:
        if self.connection.wait(doorbell, timeout_s):
            raise self.connection.lost()  # a receiver says nothing, so this is its end
        return 0

    def flush(self) -> int:
        return 0

    def close(self) -> None:
        self._probe.close()
        self.connection.close()


class TlsReceiver:
    """A `ReceivingPipe` over a TLS connection."""

    path: Path = "direct"

    def __init__(self, connection: Connection, config: LanesConfig) -> None:
        self.connection = connection
        self._config = config
        self._head = memoryview(bytearray(HEAD_BYTES))

    def next(self) -> tuple[bytes, int] | None:
        num_bytes = self.connection.read_first(self._head)
        if not num_bytes:
            return None
        deadline = time.monotonic() + self._config.stall_timeout_s
        if num_bytes < HEAD_BYTES:
            self.connection.read(self._head[num_bytes:], deadline)
        header_bytes, payload_bytes = PREFIX.unpack_from(self._head)
        check_sizes(self.connection, header_bytes, payload_bytes)
        header = bytes(self._head[PREFIX.size : PREFIX.size + header_bytes])
        if len(header) < header_bytes:
            rest = bytearray(header_bytes - len(header))
            self.connection.read(memoryview(rest), deadline)
            header += rest
        return header, payload_bytes

    def read_into(self, target: memoryview) -> None:
        allowed_s = len(target) / self._config.least_bytes_per_s + self._config.stall_timeout_s
        self.connection.read(target, time.monotonic() + allowed_s)

    def close(self) -> None:
        self.connection.close()
