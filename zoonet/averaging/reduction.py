"""What one peer does in one round's all-reduce: chunks arrive, are added up and passed on.

No event loop and no clock: chunks arrive in the threads of lanes, and the thread that brings the
last part of a chunk also adds it up and posts the result, so that a busy event loop holds nobody
up. An attempt says who contributes and who owns what. The next attempt of the same round changes
that, and all that is already averaged by those who still own it stands.

P = flat parameters, N = values of one chunk
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoonet.averaging.admission import Admission, require_size, would_hold
from zoonet.averaging.chunks import (
    DIGEST_BYTES,
    Header,
    Kind,
    bits_of,
    decode_header,
    indices_of,
)
from zoonet.averaging.held import Chunk, Part
from zoonet.averaging.inspection import Inspection
from zoonet.averaging.landing import Buffers, Landing
from zoonet.averaging.messages import Attempt
from zoonet.averaging.payload import Payload
from zoonet.averaging.plan import (
    chunk_bounds,
    members_by_index,
)
from zoonet.averaging.roles import partners_of, roles_in
from zoonet.averaging.wire import Values, Wire, is_finite
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart, ProtocolViolation
from zoonet.exact import Vector
from zoonet.ranges import count
from zoonet.transport import Buffer

_LARGEST = np.finfo(np.float32).max

Post = Callable[[PeerId, bytes, Buffer], None]


@dataclass(frozen=True, slots=True)
class Awaited:
    """How many chunks have come from a peer, of how many."""

    peer: PeerId
    num_come: int
    num_all: int
    is_mean: bool  # chunks of the mean, rather than ones to add up
    num_waits: int  # how often it has said that it waits for others, and not for this peer alone


def _is_rounded_up(parts: Sequence[Part], out_N: Vector) -> bool:
    """Whether finite values alone made an infinite mean, by rounding; it is the largest then."""
    if not all(part.is_finite for part in parts):
        return False
    np.clip(out_N, -_LARGEST, _LARGEST, out=out_N)
    return True


class Reduction:
    """One round's all-reduce at one peer. Thread safe.

    `post` sends to a peer and never blocks; `changed` is called, from any thread, when the
    reduction is complete or somebody's contribution had to be refused.
    """

    def __init__(
        self,
        attempt: Attempt,
        me: PeerId,
        payload: Payload | None,
        mean_P: Vector,
        wire: Wire,
        buffers: Buffers,
        post: Post,
        changed: Callable[[], None],
    ) -> None:
        self.round_key = attempt.round_key()
        self.peers = tuple(PeerId(peer) for peer in attempt.plan.peers)
        self.attempt = attempt
        self.refused: set[PeerId] = set()
        self._me = attempt.plan.peers.index(me)
        self._neighbours = frozenset(attempt.plan.sites[attempt.plan.site_of(self._me)])
        self._indices = {peer: index for index, peer in enumerate(self.peers)}
        self._payload = payload
        self._mean_P = mean_P
        self._wire = wire
        self._buffers = buffers
        self._landing = Landing(mean_P, wire, buffers)
        self._post = post
        self._changed = changed
        self._lock = threading.RLock()
        self._weights = {
            self._indices[PeerId(share.peer)]: count(share.slots)
            for share in (*attempt.contributions, *attempt.former)
        }
        roots = {
            self._indices[PeerId(share.peer)]: root
            for share, root in zip(attempt.contributions, attempt.roots, strict=True)
        }
        self._inspection = Inspection(self.peers, roots, wire, buffers)
        self._committed_to: set[int] = set()  # who has this peer's own
        # how often each has said that it has sent all it can for now, and lacks what others bring
        self._num_waits: Counter[int] = Counter()
        self._chunks: list[Chunk] = []
        self._contributors: frozenset[int] = frozenset()
        self._needed_bits = 0
        self._admission = self._admission_to(attempt)
        self._num_left = 0
        self._is_over = False

    # --- attempts -----------------------------------------------------------------------------

    def adopt(self, attempt: Attempt) -> None:
        """Take part in an attempt: the first one, or one that leaves somebody out.

        Chunks can arrive from now on; `advance` does what can be done already.
        """
        with self._lock:
            self.attempt = attempt
            self._contributors = members_by_index(attempt.plan, attempt.contributors)
            self._needed_bits = bits_of(self._contributors)
            self._admission = self._admission_to(attempt)
            roles = roles_in(attempt, self._me)
            by_chunk = [role for role in roles for _ in range(role.tree.first, role.tree.stop)]
            if not self._chunks:
                self._chunks = [Chunk(role) for role in by_chunk]
            self._commit_to({role.owner for role in roles} - {self._me})
            for chunk, role in zip(self._chunks, by_chunk, strict=True):
                chunk.role = role
            self._num_left = sum(not chunk.has_mean(self._needed_bits) for chunk in self._chunks)

    def _admission_to(self, attempt: Attempt) -> Admission:
        return Admission(self.peers, self._me, self._neighbours, attempt.number, self._needed_bits)

    def advance(self) -> None:
        """Send what this peer has to send, and add up what is here."""
        for number in range(len(self._chunks)):
            self._advance(number)
        if self.is_complete:
            self._changed()

    def _commit_to(self, owners: set[int]) -> None:
        if self._payload is not None and self._me in self._contributors:
            header = self._header(Kind.COMMITMENT)
            for owner in sorted(owners - self._committed_to):
                self._post(self.peers[owner], header, self._payload.digests)
            self._committed_to |= owners

    def retire(self) -> bool:
        """The round is over: nothing more begins or is handed out, and all but the mean is let go.

        Tells whether what has begun may still write into the mean's buffer, which is lost then.
        """
        with self._lock:
            self._is_over = True
            self._payload = None
            self._landing.retire()
            for chunk in self._chunks:
                chunk.let_go()
            return self._landing.is_writing or any(chunk.is_busy for chunk in self._chunks)

    @property
    def is_complete(self) -> bool:
        """The whole mean is here."""
        return self._num_left == 0

    def release_parts(self) -> None:
        """The round is certified: where all is here, only the mean is still asked for."""
        with self._lock:
            if self.is_complete:
                self._payload = None
                for chunk in self._chunks:
                    chunk.let_go_of_parts()

    def assembled(self) -> Vector:
        """Return the mean (P,). It stays as it is until the buffer is used for another round."""
        with self._lock:
            self._buffers.settle()
            if not self._landing.has_spilled:
                return self._mean_P
            # Something that has been given up may still write into mean_P.
            pieces = [chunk.mean_N for chunk in self._chunks]
            assert all(piece is not None for piece in pieces)
            return np.concatenate([piece for piece in pieces if piece is not None])

    # --- what is still to come ----------------------------------------------------------------

    def awaited(self) -> list[Awaited]:
        """Of whom chunks are missing here: first those to add up, then means."""
        up: dict[int, list[int]] = {}
        down: dict[int, list[int]] = {}
        with self._lock:
            for chunk in self._chunks:
                has_mean = chunk.has_mean(self._needed_bits)
                for source in chunk.role.sources:
                    if source != self._me:
                        is_added = has_mean or chunk.has_added(source)
                        up.setdefault(source, []).append(is_added or source in chunk.parts)
                if chunk.role.parent is not None:
                    down.setdefault(chunk.role.parent, []).append(has_mean)
        return [
            Awaited(
                self.peers[sender],
                sum(come),
                len(come),
                is_mean=tallies is down,
                num_waits=0 if self._owes_parts(sender, tallies is up) else self._num_waits[sender],
            )
            for tallies in (up, down)
            for sender, come in sorted(tallies.items())
        ]

    def partly(self, peer_id: PeerId, arriving: Mapping[bytes, int]) -> float:
        """How many of a peer's chunks are under way and needed: each counts by what has come.

        `arriving` are bytes by header; see `zoonet.transport.Lanes.arriving`.
        """
        sender, share = self._indices.get(peer_id), 0.0
        for raw, num_bytes in arriving.items():
            header = decode_header(raw)
            if header.kind == Kind.COMMITMENT or header.round_key != self.round_key:
                continue
            with self._lock:
                place = self._landing.find(sender, header) if sender is not None else None
            if place:
                share += num_bytes / len(place)
        return share

    def _owes_parts(self, sender: int, is_up: bool) -> bool:
        """Parts of a contribution depend on nobody: they are no reason to wait."""
        return is_up and sender in self._neighbours

    def partners_in(self, attempt: Attempt) -> set[PeerId]:
        """Everyone to whom this peer sends in an attempt."""
        return {self.peers[index] for index in partners_of(attempt, self._me)}

    def alive(self) -> bytes:
        """The header by which this peer says that it waits for others, and for whom."""
        owing = {self._indices[one.peer] for one in self.awaited() if one.num_come < one.num_all}
        return self._header(Kind.ALIVE, bits=bits_of(frozenset(owing)))

    def _header(self, kind: Kind, number: int = 0, maker: int = 0, bits: int = 0) -> bytes:
        return Header(kind, self.round_key, self.attempt.number, number, maker, bits).encode()

    # --- arrivals -----------------------------------------------------------------------------

    def admit(self, peer_id: PeerId, header: Header, num_bytes: int) -> memoryview | None:
        """See `zoonet.transport.Sink.admit`. What is not needed goes where nobody looks."""
        with self._lock:
            sender = self._indices.get(peer_id)
            if sender is None:
                raise ProtocolViolation(peer_id, "a chunk of a round that it has no part in")
            if header.number > self.attempt.number or not self._chunks:
                return None  # no attempt that far has been adopted yet
            if header.kind == Kind.ALIVE:
                require_size(peer_id, num_bytes, 0)
                self._num_waits[sender] += bool(header.bits & ~(1 << self._me))
                return self._landing.nowhere(0)
            if header.kind == Kind.COMMITMENT:
                require_size(peer_id, num_bytes, DIGEST_BYTES * len(self._chunks))
                return self._land(sender, header, num_bytes)
            if header.chunk >= len(self._chunks):
                raise ProtocolViolation(peer_id, f"chunk {header.chunk} of {len(self._chunks)}")
            start, stop = chunk_bounds(self._mean_P.size, header.chunk)
            self._wire.check_size(peer_id, num_bytes, stop - start)
            chunk = self._chunks[header.chunk]
            if self._is_over or not self._admission.is_wanted(chunk, sender, header):
                return self._landing.nowhere(num_bytes)
            if header.kind == Kind.PART and sender not in self._inspection.commitments:
                return None  # it comes over another connection
            return self._land(sender, header, num_bytes)

    def _land(self, sender: int, header: Header, num_bytes: int) -> memoryview:
        place = self._landing.begin(sender, header, num_bytes)
        if place is None:
            raise ProtocolViolation(self.peers[sender], "the same chunk twice at once")
        return place

    def arrived(self, peer_id: PeerId, header: Header) -> None:
        """See `zoonet.transport.Sink.arrived`."""
        sender = self._indices[peer_id]
        with self._lock:
            landed = self._landing.find(sender, header)
        if landed is None:
            return  # it went where nobody looks
        try:
            self._inspection.check(sender, header, landed)
            is_chunk = header.kind != Kind.COMMITMENT
            size = self._size_of(header.chunk) if is_chunk else 0
            values = self._inspection.values_in(sender, header, landed, size)
            with self._lock:
                self._keep(sender, header, landed, values)
        except InvalidPart:
            self._refuse(sender)
            raise
        finally:
            with self._lock:
                self._landing.end(sender, header)
        if header.kind != Kind.COMMITMENT:
            self._advance(header.chunk)

    def _refuse(self, sender: int) -> None:
        with self._lock:
            self.refused.add(self.peers[sender])
        self._changed()

    def _keep(self, sender: int, header: Header, landed: memoryview, values: Values) -> None:
        if header.kind == Kind.COMMITMENT:
            self._inspection.commitments[sender] = bytes(landed)
            return
        chunk = self._chunks[header.chunk]
        if header.kind == Kind.MEAN:
            assert not isinstance(values, memoryview)
            if not chunk.has_mean(self._needed_bits) and would_hold(
                chunk, header, self._needed_bits
            ):
                self._take_mean(header.chunk, chunk, values, landed, header.maker, header.bits)
            if not self._wire.is_exact:
                self._buffers.give_back(values)
            return
        bits = 1 << sender
        if header.kind != Kind.PART:
            bits = header.bits
            self._admission.check_sum(
                self.attempt.plan, sender, bits, self._contributors, self._weights
            )
        chunk.parts[sender] = Part(values, bits)

    def forget(self, peer_id: PeerId) -> None:
        """A lane of this peer has ended: what was under way on it will not arrive."""
        sender = self._indices.get(peer_id)
        with self._lock:
            self._landing.forget(sender)

    # --- adding up and passing on -------------------------------------------------------------

    def _advance(self, number: int) -> None:
        """Do for one chunk whatever can be done now."""
        chunk = self._chunks[number]
        while True:
            with self._lock:
                self._pass_on(number, chunk)
                parts = self._ready_parts(number, chunk)
                if parts is None:
                    return
                chunk.is_busy = True
                is_root = chunk.role.parent is None
                out_N = self._place_of_result(number, is_root)
                is_raw_kept = is_root and not self._wire.is_exact
                room = self._landing.raw_target(number) if is_raw_kept else None
                weights = [self._weight_of(part.bits) for part in parts]
            raw = self._add_up(number, is_root, parts, weights, out_N, room)
            with self._lock:
                chunk.is_busy = False
                if raw is None:
                    guilty = self._drop_non_finite(chunk)
                elif (chunk.role.parent is None) == is_root:
                    self._keep_result(number, chunk, parts, out_N, raw)
                if not self._wire.is_exact:
                    self._buffers.give_back(out_N)
            if raw is None:
                for source in guilty:
                    self._refuse(source)
                return

    def _place_of_result(self, number: int, is_root: bool) -> Vector:
        """Where a chunk is added up: for good, unless it is encoded."""
        if not self._wire.is_exact:
            return self._buffers.take(self._size_of(number))
        if is_root:
            return self._landing.mean_target(number)
        return np.empty(self._size_of(number), np.float32)

    def _add_up(
        self,
        number: int,
        is_root: bool,
        parts: Sequence[Part],
        weights: Sequence[int],
        out_N: Vector,
        room: memoryview | None,
    ) -> memoryview | None:
        """Add up a chunk; return it as it is sent, or None where some part is not finite."""
        values = [part.values for part in parts]
        if len(values) == 1 and isinstance(values[0], memoryview):
            if is_root:
                self._wire.codec.decode(values[0], out_N)
            return values[0]  # as it came: nothing more is lost where nothing is added
        with np.errstate(over="ignore", invalid="ignore"):
            self._wire.add_up(values, weights, out_N)
        if not (is_finite(out_N) or _is_rounded_up(parts, out_N)):
            return None
        return self._wire.encode(is_root, number, out_N, room)

    def _keep_result(
        self, number: int, chunk: Chunk, parts: Sequence[Part], out_N: Vector, raw: memoryview
    ) -> None:
        bits = 0
        for part in parts:
            bits |= part.bits
        for source, part in chunk.parts.items():
            if source != self._me:
                self._give_back(part.values, raw)
        chunk.parts.clear()
        if chunk.role.parent is None:
            self._take_mean(number, chunk, out_N, raw, self._me, bits)
        else:
            chunk.sum, chunk.sum_raw = Part(out_N if self._wire.is_exact else raw, bits), raw

    def _give_back(self, values: Values, raw: memoryview) -> None:
        if not isinstance(values, memoryview):
            self._buffers.give_back(values)
        elif values is not raw:  # a single part goes on as it came
            self._buffers.give_back_encoded(values)

    def _drop_non_finite(self, chunk: Chunk) -> list[int]:
        guilty = [source for source, part in chunk.parts.items() if not part.is_finite]
        for source in guilty:
            del chunk.parts[source]
        return guilty

    def _take_mean(
        self, number: int, chunk: Chunk, mean_N: Vector, raw: memoryview, maker: int, bits: int
    ) -> None:
        had_it = chunk.has_mean(self._needed_bits)
        if not self._wire.is_exact:
            start, stop = chunk_bounds(self._mean_P.size, number)
            self._mean_P[start:stop] = mean_N
            mean_N = self._mean_P[start:stop]
        chunk.mean_N, chunk.mean_raw = mean_N, raw
        chunk.mean_maker, chunk.mean_bits = maker, bits
        chunk.posted_down = set()
        if not had_it and chunk.has_mean(self._needed_bits):
            if self._payload is not None:
                self._payload.drop(number)
            self._num_left -= 1
            if not self._num_left:
                self._changed()

    def _weight_of(self, bits: int) -> int:
        return sum(self._weights[index] for index in indices_of(bits))

    def _ready_parts(self, number: int, chunk: Chunk) -> list[Part] | None:
        """All parts of a chunk that this peer is to add up now, in order; None while any lacks."""
        role = chunk.role
        if self._is_over or not role.sources or chunk.is_busy or chunk.has_mean(self._needed_bits):
            return None
        if chunk.sum is not None and role.parent is not None:
            return None
        if self._payload is not None and self._me in role.sources:
            self._take_own_part(number, chunk, self._payload)
        parts: list[Part] = []
        covered = 0
        if chunk.sum is not None:  # it has become the root since
            parts.append(chunk.sum)
            covered = chunk.sum.bits
        for source in role.sources:
            if covered >> source & 1:
                continue
            if source not in chunk.parts:
                return None
            parts.append(chunk.parts[source])
        return parts

    def _take_own_part(self, number: int, chunk: Chunk, payload: Payload) -> None:
        """This peer's own chunk counts as the others get it."""
        if self._me not in chunk.parts and (raw := payload.chunk(number)) is not None:
            own = np.frombuffer(raw, np.float32) if self._wire.is_exact else raw
            chunk.parts[self._me] = Part(own, 1 << self._me)
            payload.drop(number)

    def _size_of(self, number: int) -> int:
        start, stop = chunk_bounds(self._mean_P.size, number)
        return stop - start

    def _pass_on(self, number: int, chunk: Chunk) -> None:
        """Post what this peer has of a chunk to those who lack it."""
        role = chunk.role
        if self._is_over:
            return
        if (
            role.parent is not None
            and chunk.posted_up != role.parent
            and not chunk.has_mean(self._needed_bits)
        ):
            self._post_up(number, chunk, role.parent)
        if chunk.has_mean(self._needed_bits):
            header = self._header(Kind.MEAN, number, chunk.mean_maker, chunk.mean_bits)
            for receiver in role.receivers:
                if receiver not in chunk.posted_down:
                    chunk.posted_down.add(receiver)
                    self._post(self.peers[receiver], header, self._mean_raw_of(chunk))
            if self._wire.is_repeatable:
                chunk.mean_raw = memoryview(b"")

    def _mean_raw_of(self, chunk: Chunk) -> memoryview:
        if not chunk.mean_raw and chunk.mean_N is not None:
            chunk.mean_raw = self._wire.encode_again(chunk.mean_N)
        return chunk.mean_raw

    def _post_up(self, number: int, chunk: Chunk, parent: int) -> None:
        if chunk.role.sources:
            if chunk.sum is None:
                return
            header = self._header(Kind.SUM, number, bits=chunk.sum.bits)
            raw = chunk.sum_raw
        elif self._me in self._contributors and self._payload is not None:
            header = self._header(Kind.PART, number, bits=1 << self._me)
            own = self._payload.chunk(number)
            if own is None:
                return  # the round is over
            raw = own
            self._payload.drop(number)  # it goes as it leaves
        else:
            return
        chunk.posted_up = parent
        self._post(self.peers[parent], header, raw)
