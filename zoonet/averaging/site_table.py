"""What has come to one meeting of a site, at one of its members. No event loop, no clock.

::

    every peer --PART--> the chunk's owner --MEAN--> those whose part is in it

Nothing here is agreed on: whoever lacks a chunk's mean keeps its own values there. A mean counts
for this peer only if its own part is in it: a neighbour may spoil its work, but not do without it.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import numpy as np

from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.meetings import Meeting
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.averaging.wire import is_finite
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart, ProtocolViolation
from zoonet.exact import Vector, weighted_mean
from zoonet.transport import Buffer

Post = Callable[[PeerId, bytes, Buffer], None]
Landing = tuple[PeerId, Kind, int]  # from whom, and which chunk


class SiteTable:
    """One meeting, as one of its peers sees it. Thread safe.

    Parts of others may come before this peer `arrive`s with its own. The thread that brings the
    last part of a chunk also averages it.
    """

    def __init__(
        self, meeting: Meeting, key: bytes, me: PeerId, num_values: int, post: Post
    ) -> None:
        self.meeting = meeting
        self._key = key
        self._me = me
        self._num_values = num_values
        self._post = post
        self._weights = dict(zip(meeting.peers, meeting.weights, strict=True))
        self._lock = threading.Lock()
        self._is_over = False
        self._awaited = set(meeting.peers)
        self._is_hurried = False
        self._landing: dict[Landing, Vector] = {}
        self._came: set[Landing] = set()
        self._own_P: Vector | None = None
        self._out_P: Vector | None = None  # where this peer makes means
        numbers = range(num_chunks(num_values))
        self._parts: dict[int, dict[PeerId, Vector]] = {
            number: {} for number in numbers if meeting.owner_of(number) == me
        }
        self._means: dict[int, tuple[Vector, frozenset[PeerId]]] = {}
        self._lacking = set(numbers)  # chunks without a mean

    # --- what this peer does ------------------------------------------------------------------

    def arrive(self, own_P: Vector, out_P: Vector) -> None:
        """Bring this peer's own values (P,), which must not change any more, and send them.

        Means are made in `out_P` (P,), which is this table's until nobody reads from it.
        """
        with self._lock:
            self._own_P, self._out_P = own_P, out_P
        for number in range(num_chunks(self._num_values)):
            owner = self.meeting.owner_of(number)
            values_N = own_P[slice(*chunk_bounds(self._num_values, number))]
            if owner == self._me:
                self._bring(number, self._me, values_N)
            else:
                header = Header(Kind.PART, self._key, self.meeting.number, number)
                self._post(owner, header.encode(), values_N.view(np.uint8).data)

    def expect_no_more(self, peers: Collection[PeerId]) -> None:
        """Nothing of these is waited for; what comes in time still counts."""
        with self._lock:
            self._awaited -= set(peers) - {self._me}
        self._average_all()

    def hurry(self) -> frozenset[PeerId]:
        """Average what is here, wait only for those who have sent something; tell who has not."""
        with self._lock:
            mute = self._awaited - {peer for peer, _, _ in self._came} - {self._me}
            self._awaited -= mute
            self._is_hurried = True
        self._average_all()
        return frozenset(mute)

    def owing(self) -> frozenset[PeerId]:
        """Of whom something is still awaited."""
        late: set[PeerId] = set()
        with self._lock:
            for number in self._lacking:
                parts = self._parts.get(number)
                if parts is None:
                    late.add(self.meeting.owner_of(number))
                elif not self._is_hurried:
                    late |= self._awaited - parts.keys()
            return frozenset(late & self._awaited - {self._me})

    def end(self, into_P: Vector) -> frozenset[PeerId]:
        """Write the means that are here over `into_P` (P,); tell whose work is in them.

        Nothing is taken in any more.
        """
        with self._lock:
            self._is_over = True
            means = self._means
        mixed: set[PeerId] = set()
        for number, (mean_N, peers) in means.items():
            if is_finite(mean_N):  # its owner may have written there since
                np.copyto(into_P[slice(*chunk_bounds(self._num_values, number))], mean_N)
                mixed |= peers
        return frozenset(mixed - {self._me})

    # --- what others send ---------------------------------------------------------------------

    def admit(self, peer_id: PeerId, header: Header, num_bytes: int) -> memoryview | None:
        """Where a payload goes; None where it is not wanted. Raises ProtocolViolation."""
        number = header.chunk
        if peer_id not in self._weights or peer_id == self._me:
            raise ProtocolViolation(peer_id, "a chunk of a meeting that it is not expected at")
        if number >= num_chunks(self._num_values):
            raise ProtocolViolation(peer_id, f"chunk {number} of a site's mean")
        start, stop = chunk_bounds(self._num_values, number)
        if num_bytes != 4 * (stop - start):
            raise InvalidPart(peer_id, f"{num_bytes} bytes, not {4 * (stop - start)}")
        owner = self._me if header.kind == Kind.PART else peer_id
        if header.kind not in (Kind.PART, Kind.MEAN) or self.meeting.owner_of(number) != owner:
            raise ProtocolViolation(peer_id, "a chunk that is not its to send")
        landing = (peer_id, header.kind, number)
        with self._lock:
            if landing in self._landing and landing not in self._came:
                raise ProtocolViolation(peer_id, "the same chunk twice at once")
            if self._is_over or not self._is_needed(header) or landing in self._came:
                return None
            # Zeros: whatever a neighbour leaves unwritten, it is not told what lay there before.
            values_N = self._landing[landing] = np.zeros(stop - start, np.float32)
        return values_N.view(np.uint8).data

    def _is_needed(self, header: Header) -> bool:
        if header.kind == Kind.PART:
            return header.chunk in self._lacking
        is_in = self._own_P is not None and self._me in self.meeting.of_bits(header.bits)
        return is_in and header.chunk in self._lacking

    def arrived(self, peer_id: PeerId, header: Header) -> None:
        """A payload is complete. Raises InvalidPart."""
        landing = (peer_id, header.kind, header.chunk)
        values_N = self._landing.get(landing)
        if values_N is None or landing in self._came:
            return
        if not is_finite(values_N):
            raise InvalidPart(peer_id, "non-finite values")
        with self._lock:
            self._came.add(landing)
        if header.kind == Kind.PART:
            self._bring(header.chunk, peer_id, values_N)
            return
        with self._lock:
            if not self._is_over and header.chunk in self._lacking:
                peers = self.meeting.of_bits(header.bits) | {peer_id}
                self._means[header.chunk] = values_N, peers
                self._lacking.discard(header.chunk)

    # --- adding up ----------------------------------------------------------------------------

    def _average_all(self) -> None:
        with self._lock:
            lacking = sorted(self._lacking & self._parts.keys())
        for number in lacking:
            self._average(number)

    def _bring(self, number: int, peer_id: PeerId, values_N: Vector) -> None:
        with self._lock:
            self._parts[number][peer_id] = values_N
        self._average(number)

    def _average(self, number: int) -> None:
        """Make the mean of a chunk and send it, if all who are awaited have brought their part."""
        with self._lock:
            parts = self._parts[number]
            is_ready = self._is_hurried or self._awaited <= parts.keys()
            is_ready = is_ready and self._me in parts and len(parts) > 1
            if self._is_over or number not in self._lacking or not is_ready:
                return
            assert self._out_P is not None  # this peer's part comes with it
            peers = frozenset(parts)
            mean_N = self._out_P[slice(*chunk_bounds(self._num_values, number))]
            ordered = [peer for peer in self.meeting.peers if peer in peers]
            vectors = [parts[peer] for peer in ordered]
            weighted_mean(vectors, [self._weights[peer] for peer in ordered], out=mean_N)
            self._lacking.discard(number)
            if not is_finite(mean_N):
                return  # what is added up may overflow
            self._means[number] = mean_N, peers
        bits = self.meeting.bits(peers)
        header = Header(Kind.MEAN, self._key, self.meeting.number, number, 0, bits).encode()
        for peer in sorted(peers - {self._me}):
            self._post(peer, header, mean_N.view(np.uint8).data)
