"""Memory that peers of the same machine read directly: anonymous files of a sealed size."""

from __future__ import annotations

import bisect
import fcntl
import itertools
import logging
import mmap
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

LEAST_SHARED_BYTES: Final = 64 * 1024  # smaller allocations are ordinary memory
MAX_SEGMENT_BYTES: Final = 1 << 40

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A shared piece of memory: where it is mapped here, and the file behind it."""

    number: int
    start: int  # address
    num_bytes: int
    fd: int


class SharedMemory:
    """Hands out shared memory, and finds again which piece a buffer lies in. Thread-safe."""

    def __init__(self, *, is_shared: bool) -> None:
        self._is_shared = is_shared and hasattr(os, "memfd_create")
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._dead: deque[Segment] = deque()  # a finalizer may run anywhere, and takes no lock
        self._starts: list[int] = []
        self._segments: list[Segment] = []  # in the order of addresses

    def allocate(self, num_bytes: int) -> memoryview:
        """Zeroed, writable memory. It goes when the last view of it does."""
        if not self._is_shared or not LEAST_SHARED_BYTES <= num_bytes <= MAX_SEGMENT_BYTES:
            return memoryview(bytearray(num_bytes))
        try:
            return memoryview(self._map(num_bytes))
        except OSError as error:  # out of descriptors, or no such files here
            log.debug("no shared memory, ordinary memory instead: %s", error)
            return memoryview(bytearray(num_bytes))

    def _map(self, num_bytes: int) -> mmap.mmap:
        fd = os.memfd_create("zoonet-lanes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, num_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            mapped = mmap.mmap(fd, num_bytes)
        except BaseException:  # an interrupt, too, must leave no descriptor
            os.close(fd)
            raise
        start = address_of(memoryview(mapped))
        segment = Segment(next(self._numbers), start, num_bytes, fd)
        with self._lock:
            self._bury()
            place = bisect.bisect(self._starts, start)
            self._starts.insert(place, start)
            self._segments.insert(place, segment)
        weakref.finalize(mapped, self._forget, segment)
        return mapped

    def _forget(self, segment: Segment) -> None:
        """Its last view is gone: runs before the address can be another's."""
        self._dead.append(segment)
        os.close(segment.fd)

    def _bury(self) -> None:
        while self._dead:
            place = self._segments.index(self._dead.popleft())
            del self._segments[place], self._starts[place]

    def find(self, payload: memoryview) -> tuple[Segment, int] | None:
        """The segment that holds the whole payload, and at which offset; None for other memory."""
        if not self._segments:
            return None
        address = address_of(payload)
        with self._lock:
            self._bury()
            place = bisect.bisect(self._starts, address) - 1
            if place < 0:
                return None
            segment = self._segments[place]
        offset = address - segment.start
        return (segment, offset) if offset + len(payload) <= segment.num_bytes else None

    def numbers(self) -> set[int]:
        """Numbers of the segments that are there."""
        with self._lock:
            self._bury()
            return {segment.number for segment in self._segments}


def address_of(view: memoryview) -> int:
    """Where the first byte of a buffer of at least one byte lies."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def sealed_size(fd: int) -> int:
    """Size in bytes of a peer's segment. Raises ValueError unless nobody can ever shrink it.

    Only anonymous memory can have seals, so this is also no pipe, device or remote file.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise ValueError("no anonymous memory") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ValueError("memory that could shrink while it is read")
    return os.fstat(fd).st_size
