"""Messages to a peer of the same machine: over a local socket, with payloads in shared memory.

::

    frame      kind, length of header, of payload, segment, offset
    INLINE     the payload follows the header
    REFERENCE  the payload lies in that segment at that offset; answered by one byte once copied
    SEGMENT    a descriptor comes with this frame: from now on it is that segment
    FORGET     that segment is needed no more

The receiver copies out of the sender's memory with the kernel's own read, so nothing that the
sender does to its memory meanwhile can hurt it: it sees some bytes, and judges its copy.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections import deque
from typing import Final

from zoonet.errors import PeerTimeout, ProtocolViolation, StreamClosed
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection, Doorbell
from zoonet.net.lanes.links import LinkMeter
from zoonet.net.lanes.memory import Segment, SharedMemory, sealed_size
from zoonet.net.lanes.tls import JOINED_BYTES, check_sizes
from zoonet.transport.lanes import Path

INLINE, REFERENCE, SEGMENT, FORGET = range(4)
FRAME: Final = struct.Struct(">BHIQQ")
MAX_IN_FLIGHT: Final = 8  # references that were not copied yet: the others can still be dropped
MAX_SEGMENTS: Final = 64  # that a peer may have us keep, for each lane
COPIED: Final = b"\x01"


class ShmSender:
    """A `SendingPipe` over a local socket."""

    def __init__(self, connection: Connection, memory: SharedMemory, meter: LinkMeter) -> None:
        self.connection = connection
        self._memory = memory
        self._meter = meter
        self._told: set[int] = set()
        self._in_flight: deque[int] = deque()
        self._answers = memoryview(bytearray(MAX_IN_FLIGHT))

    def send(self, header: bytes, payload: memoryview) -> int:
        num_bytes = len(payload)
        place = self._memory.find(payload) if num_bytes > JOINED_BYTES else None
        if place is None or not self._tell(place[0]):
            return self._send_inline(header, payload)
        segment, offset = place
        self._meter.sent.begin()
        self._in_flight.append(num_bytes)
        frame = FRAME.pack(REFERENCE, len(header), num_bytes, segment.number, offset)
        self.connection.write(frame + header)
        return self._take_answers() if len(self._in_flight) >= MAX_IN_FLIGHT else 0

    def _send_inline(self, header: bytes, payload: memoryview) -> int:
        head = FRAME.pack(INLINE, len(header), len(payload), 0, 0) + header
        self._meter.sent.begin()
        try:
            if len(payload) <= JOINED_BYTES:
                self.connection.write(head + payload)
            else:
                self.connection.write(head)
                self.connection.write(payload)
        finally:
            self._meter.sent.end(len(payload))
        return len(payload)

    def _tell(self, segment: Segment) -> bool:
        """Make the segment known to the receiver; False where it knows too many."""
        if segment.number in self._told:
            return True
        for number in self._told - self._memory.numbers():
            self.connection.write(FRAME.pack(FORGET, 0, 0, number, 0))
            self._told.discard(number)
        if len(self._told) >= MAX_SEGMENTS:
            return False
        frame = FRAME.pack(SEGMENT, 0, 0, segment.number, 0)
        try:
            socket.send_fds(self.connection.socket, [frame], [segment.fd])
        except OSError as error:
            raise self.connection.lost(error) from error
        self._told.add(segment.number)
        return True

    def _take_answers(self) -> int:
        """Wait for at least one payload to be copied; return how many bytes were."""
        answers = self._answers[: len(self._in_flight)]
        try:
            num_answers = self.connection.socket.recv_into(answers)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={self.connection.peer_id[-8:]} takes no bytes") from error
        except OSError as error:
            raise self.connection.lost(error) from error
        if not num_answers:
            raise StreamClosed(f"peer={self.connection.peer_id[-8:]} has gone")
        num_bytes = 0
        for _ in range(num_answers):
            copied = self._in_flight.popleft()
            self._meter.sent.end(copied)
            num_bytes += copied
        return num_bytes

    def wait(self, doorbell: Doorbell) -> int:
        if not self.connection.wait(doorbell):
            return 0
        if not self._in_flight:
            raise self.connection.lost()
        return self._take_answers()

    def flush(self) -> int:
        num_bytes = 0
        while self._in_flight:
            num_bytes += self._take_answers()
        return num_bytes

    def close(self) -> None:
        while self._in_flight:
            self._in_flight.popleft()
            self._meter.sent.end(0)
        self.connection.close()


class ShmReceiver:
    """A `ReceivingPipe` over a local socket."""

    path: Path = "shm"

    def __init__(self, connection: Connection, config: LanesConfig) -> None:
        self.connection = connection
        self._config = config
        self._segments: dict[int, tuple[int, int]] = {}  # descriptor and size
        self._new_fds: list[int] = []
        self._source: tuple[int, int] | None = None  # descriptor and offset of the next payload

    def next(self) -> tuple[bytes, int] | None:
        while (frame := self._frame()) is not None:
            kind, header_bytes, num_bytes, number, offset = frame
            if kind == SEGMENT:
                self._keep(number)
                continue
            if kind == FORGET:
                os.close(self._segment(number)[0])
                del self._segments[number]
                continue
            if kind not in (INLINE, REFERENCE):
                raise ProtocolViolation(self.connection.peer_id, f"a frame of kind {kind}")
            check_sizes(self.connection, header_bytes, num_bytes)
            header = bytearray(header_bytes)
            deadline = time.monotonic() + self._config.stall_timeout_s
            self.connection.read(memoryview(header), deadline)
            self._source = self._place(number, offset, num_bytes) if kind == REFERENCE else None
            return bytes(header), num_bytes
        return None

    def read_into(self, target: memoryview) -> None:
        if self._source is None:
            allowed_s = len(target) / self._config.least_bytes_per_s
            deadline = time.monotonic() + allowed_s + self._config.stall_timeout_s
            self.connection.read(target, deadline)
            return
        fd, offset = self._source
        num_bytes = 0
        while num_bytes < len(target):
            num_new = self._copy(fd, offset + num_bytes, target[num_bytes:])
            num_bytes += num_new
        self.connection.ear.heard_s = time.monotonic()
        self.connection.write(COPIED)

    def _copy(self, fd: int, offset: int, target: memoryview) -> int:
        try:
            num_bytes = os.preadv(fd, [target], offset)
        except OSError as error:
            raise self.connection.lost(error) from error
        if not num_bytes:
            raise ProtocolViolation(self.connection.peer_id, "shared memory that ended")
        return num_bytes

    def _frame(self) -> tuple[int, int, int, int, int] | None:
        """The next frame's fields; a descriptor that comes with it is noted. None at the end."""
        raw = b""
        while len(raw) < FRAME.size:
            part = self._receive(FRAME.size - len(raw))
            if part is None and raw:
                raise PeerTimeout(f"peer={self.connection.peer_id[-8:]} stalled in a message")
            if part == b"" and raw:
                raise StreamClosed(f"peer={self.connection.peer_id[-8:]} ended in a message")
            if part == b"":
                return None
            raw += part or b""
        kind, header_bytes, num_bytes, number, offset = FRAME.unpack(raw)
        if bool(self._new_fds) != (kind == SEGMENT):
            raise ProtocolViolation(self.connection.peer_id, "a descriptor in the wrong place")
        return kind, header_bytes, num_bytes, number, offset

    def _receive(self, num_bytes: int) -> bytes | None:
        """Some bytes of a frame, with any descriptor; empty at the end, None where none come."""
        fds = array.array("i")
        try:
            part, ancillary, flags, _ = self.connection.socket.recvmsg(
                num_bytes, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            return None
        except OSError as error:
            raise self.connection.lost(error) from error
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self._new_fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._new_fds) > 1:
            raise ProtocolViolation(self.connection.peer_id, "more descriptors than one")
        return part

    def _keep(self, number: int) -> None:
        if number in self._segments or len(self._segments) >= MAX_SEGMENTS:
            raise ProtocolViolation(self.connection.peer_id, "a segment too many, or twice")
        try:
            num_bytes = sealed_size(self._new_fds[0])
        except ValueError as error:
            raise ProtocolViolation(self.connection.peer_id, f"shared {error}") from error
        self._segments[number] = (self._new_fds.pop(), num_bytes)

    def _segment(self, number: int) -> tuple[int, int]:
        if number not in self._segments:
            raise ProtocolViolation(self.connection.peer_id, f"an unknown segment {number}")
        return self._segments[number]

    def _place(self, number: int, offset: int, num_bytes: int) -> tuple[int, int]:
        fd, size = self._segment(number)
        if not num_bytes or offset + num_bytes > size:
            raise ProtocolViolation(self.connection.peer_id, "a payload outside of its segment")
        return fd, offset

    def close(self) -> None:
        for fd in [*self._new_fds, *(fd for fd, _ in self._segments.values())]:
            os.close(fd)
        self._new_fds.clear()
        self._segments.clear()
        self.connection.close()
