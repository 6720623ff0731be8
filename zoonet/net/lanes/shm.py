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

from zoonet.crypto import short
from zoonet.errors import PeerTimeout, ProtocolViolation, StreamClosed
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import TIMED_OUT, Connection, Doorbell
from zoonet.net.lanes.links import LinkMeter
from zoonet.net.lanes.memory import Segment, SharedMemory, sealed_size
from zoonet.net.lanes.tls import check_sizes
from zoonet.transport.lanes import Path

INLINE, REFERENCE, SEGMENT, FORGET = range(4)
FRAME: Final = struct.Struct(">BHIQQ")
MAX_IN_FLIGHT: Final = 8  # references that were not copied yet: the others can still be dropped
MAX_SEGMENTS: Final = 64  # that a peer may have us keep, for each lane
JOINED_BYTES: Final = 4 * 1024  # payloads up to this size share a write with their header
ANCILLARY_BYTES: Final = socket.CMSG_LEN(array.array("i").itemsize)  # one descriptor
CONTROL_BYTES: Final = 4 * 1024  # read at once: several frames, if they are there
COPIED: Final = b"\x01"


class ShmSender:
    """A `SendingPipe` over a local socket."""

    bytes_per_s = 0.0  # nobody shares its work

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
        if not self._in_flight:
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
        except TIMED_OUT as error:
            raise PeerTimeout(f"peer={short(self.connection.peer_id)} takes no bytes") from error
        except OSError as error:
            raise self.connection.lost(error) from error
        if not num_answers:
            raise StreamClosed(f"peer={short(self.connection.peer_id)} has gone")
        num_bytes = sum(self._in_flight.popleft() for _ in range(num_answers))
        self._meter.sent.end(num_bytes, is_idle=not self._in_flight)
        return num_bytes

    def wait(self, doorbell: Doorbell, timeout_s: float | None = None) -> int:
        if not self.connection.wait(doorbell, timeout_s):
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
        if self._in_flight:
            self._in_flight.clear()
            self._meter.sent.end(0)
        self.connection.close()


class ShmReceiver:
    """A `ReceivingPipe` over a local socket."""

    path: Path = "shm"

    def __init__(self, connection: Connection, config: LanesConfig) -> None:
        self.connection = connection
        self._config = config
        self._control = memoryview(bytearray(CONTROL_BYTES))
        self._first = self._last = 0  # of what was read into it and not used yet
        self._segments: dict[int, tuple[int, int]] = {}  # descriptor and size
        self._new_fd: int | None = None  # came with a frame that was not looked at yet
        self._source: tuple[int, int] | None = None  # descriptor and offset of the next payload

    def next(self) -> tuple[bytes, int] | None:
        while True:
            if self._first == self._last and not self._read_more(may_end=True):
                return None
            kind, header_bytes, num_bytes, number, offset = FRAME.unpack(self._take(FRAME.size))
            if kind == SEGMENT:
                self._keep(number)
            elif kind == FORGET:
                os.close(self._segment(number)[0])
                del self._segments[number]
            elif kind in (INLINE, REFERENCE):
                check_sizes(self.connection, header_bytes, num_bytes)
                header = bytes(self._take(header_bytes))
                self._source = self._place(number, offset, num_bytes) if kind else None
                return header, num_bytes
            else:
                raise ProtocolViolation(self.connection.peer_id, f"a frame of kind {kind}")

    def read_into(self, target: memoryview) -> None:
        if self._source is None:
            self._read_inline(target)
            return
        fd, offset = self._source
        num_bytes = 0
        while num_bytes < len(target):
            num_bytes += self._copy(fd, offset + num_bytes, target[num_bytes:])
        self.connection.write(COPIED)

    def _copy(self, fd: int, offset: int, target: memoryview) -> int:
        try:
            num_bytes = os.preadv(fd, [target], offset)
        except OSError as error:
            raise self.connection.lost(error) from error
        if not num_bytes:
            raise ProtocolViolation(self.connection.peer_id, "shared memory that ended")
        return num_bytes

    def _read_inline(self, target: memoryview) -> None:
        """The rest of the payload, of which some may have come with the frame."""
        num_bytes = min(len(target), self._last - self._first)
        target[:num_bytes] = self._control[self._first : self._first + num_bytes]
        self._first += num_bytes
        allowed_s = len(target) / self._config.least_bytes_per_s + self._config.stall_timeout_s
        self.connection.read(target[num_bytes:], time.monotonic() + allowed_s)

    def _take(self, num_bytes: int) -> memoryview:
        """The next bytes of frames and headers."""
        while self._last - self._first < num_bytes:
            self._read_more(may_end=False)
        taken = self._control[self._first : self._first + num_bytes]
        self._first += num_bytes
        return taken

    def _read_more(self, *, may_end: bool) -> bool:
        """Wait for more frames, for any time where `may_end`; False where there are no more."""
        num_left = self._last - self._first
        self._control[:num_left] = self._control[self._first : self._last]
        self._first, self._last = 0, num_left
        num_bytes = self._receive(self._control[num_left:], is_patient=may_end)
        if not num_bytes and not may_end:
            raise StreamClosed(f"peer={short(self.connection.peer_id)} ended in a message")
        self._last += num_bytes
        return num_bytes > 0

    def _receive(self, target: memoryview, *, is_patient: bool) -> int:
        """Read some bytes, and note a descriptor that comes with them; 0 at the end."""
        while True:
            try:
                num_bytes, ancillary, flags, _ = self.connection.socket.recvmsg_into(
                    [target], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
                break
            except TIMED_OUT as error:
                if not is_patient:
                    who = short(self.connection.peer_id)
                    raise PeerTimeout(f"peer={who} stalled in a message") from error
            except OSError as error:
                raise self.connection.lost(error) from error
        self.connection.ear.heard_s = time.monotonic()
        if ancillary:
            self._note(ancillary)
        if flags & socket.MSG_CTRUNC:
            raise ProtocolViolation(self.connection.peer_id, "more descriptors than one")
        return num_bytes

    def _note(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            fds = array.array("i")
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            if self._new_fd is not None or len(fds) > 1:
                for fd in fds:
                    os.close(fd)
                raise ProtocolViolation(self.connection.peer_id, "more descriptors than one")
            self._new_fd = fds[0]

    def _keep(self, number: int) -> None:
        if self._new_fd is None:
            raise ProtocolViolation(self.connection.peer_id, "a segment without its descriptor")
        if number in self._segments or len(self._segments) >= MAX_SEGMENTS:
            raise ProtocolViolation(self.connection.peer_id, "a segment too many, or twice")
        try:
            num_bytes = sealed_size(self._new_fd)
        except ValueError as error:
            raise ProtocolViolation(self.connection.peer_id, f"shared {error}") from error
        self._segments[number] = (self._new_fd, num_bytes)
        self._new_fd = None

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
        for fd, _ in self._segments.values():
            os.close(fd)
        if self._new_fd is not None:
            os.close(self._new_fd)
        self._segments.clear()
        self._new_fd = None
        self.connection.close()
