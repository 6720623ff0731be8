"""Where the transfers of all groups meet: sends with wants, receives with offers.

Lanes call it from their own threads, groups from the event loop: one lock guards all of it, and
nothing in it waits. A payload lands in the memory that its receive has posted, after its size,
dtype and place have been checked, and nowhere else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.distributed.memory import dtype_name
from zoonet.distributed.wire import CHUNK_BYTES, Key, Kind, Message, Op, Spec, about, decode
from zoonet.errors import GroupFailed, ProtocolViolation, ZoonetError
from zoonet.transport import Buffer

MAX_NOTES: Final = 16_384  # offers and wants of one peer that nobody here has met yet
MAX_ENDED: Final = 4096  # groups whose late messages are passed over

Settle = Callable[[ZoonetError | None], None]  # called once, from any thread
Place = tuple[PeerId, Key]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One end of a transfer."""

    spec: Spec
    memory: memoryview
    settle: Settle
    has_started: bool = False  # sending end: the payload has been posted
    num_left: int = 0
    landing: set[int] = field(default_factory=set)  # offsets of chunks that came, or are coming


class Notes:
    """What other peers said of transfers that nobody here has met yet. Bounded for each peer."""

    def __init__(self) -> None:
        self._by_peer: dict[PeerId, dict[Key, Spec]] = {}

    def add(self, peer_id: PeerId, key: Key, spec: Spec) -> None:
        """Keep one. Raises ProtocolViolation where there are too many, or it is there already."""
        notes = self._by_peer.setdefault(peer_id, {})
        if key in notes:
            raise ProtocolViolation(peer_id, "spoke of the same transfer twice")
        if len(notes) >= MAX_NOTES:
            raise ProtocolViolation(peer_id, f"more than {MAX_NOTES} transfers at once")
        notes[key] = spec

    def take(self, peer_id: PeerId, key: Key) -> Spec | None:
        """Return and forget it."""
        return self._by_peer.get(peer_id, {}).pop(key, None)

    def has(self, peer_id: PeerId, key: Key) -> bool:
        """Whether there is one."""
        return key in self._by_peer.get(peer_id, ())

    def drop(self, group: bytes) -> None:
        """Forget those of a group."""
        for notes in self._by_peer.values():
            for key in [key for key in notes if key.group == group]:
                del notes[key]


class Mailbox:
    """The Sink of a peer's groups. Thread-safe.

    `members` may use it, others are refused. `post` sends a header and a payload to a peer soon.
    `on_notice` is called with messages that are about a peer or a group, not about a transfer;
    `on_end` when a lane from a peer has ended; both from any thread.
    """

    def __init__(
        self,
        members: Collection[PeerId],
        post: Callable[[PeerId, bytes, Buffer], None],
        on_notice: Callable[[PeerId, Message], None],
        on_end: Callable[[PeerId, ZoonetError], None],
    ) -> None:
        self._members = frozenset(members)
        self._post = post
        self._on_notice = on_notice
        self._on_end = on_end
        self._lock = threading.Lock()
        self._sends: dict[Place, _Transfer] = {}
        self._receives: dict[Place, _Transfer] = {}
        self._offers, self._wants = Notes(), Notes()
        self._offered: dict[bytes, Callable[[], None]] = {}  # by group, told of new offers
        self._running: dict[tuple[bytes, int], Op] = {}  # collectives that have begun
        self._num_begun: dict[bytes, int] = {}  # by group
        self._lost: dict[PeerId, ZoonetError] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._nowhere = memoryview(bytearray(CHUNK_BYTES))

    def open_group(self, group: bytes, on_offer: Callable[[], None]) -> None:
        """`on_offer` is called, from any thread, when a send waits for its receive."""
        with self._lock:
            self._offered[group] = on_offer
            self._num_begun[group] = 0

    def close_group(self, group: bytes, error: ZoonetError) -> None:
        """Settle what is under way in the group with the error; drop what comes for it later."""
        with self._lock:
            self._ended[group] = None
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
            self._offers.drop(group)
            self._wants.drop(group)
            self._offered.pop(group, None)
            self._num_begun.pop(group, None)
            for running in [one for one in self._running if one[0] == group]:
                del self._running[running]
            for transfers in (self._sends, self._receives):
                for place in [place for place in transfers if place[1].group == group]:
                    transfers.pop(place).settle(error)

    def lose(self, peer_id: PeerId, error: ZoonetError) -> None:
        """Transfers with this peer, those under way and later ones, end with the error."""
        with self._lock:
            self._lost[peer_id] = error
            for transfers in (self._sends, self._receives):
                for place in [place for place in transfers if place[0] == peer_id]:
                    transfers.pop(place).settle(error)

    def begin(self, group: bytes, number: int, op: Op) -> None:
        """A collective starts: others that take part in it must mean the same operation."""
        with self._lock:
            self._running[group, number] = op
            self._num_begun[group] = number + 1

    def end(self, group: bytes, number: int) -> None:
        """All of its transfers are done."""
        with self._lock:
            self._running.pop((group, number), None)

    def send(
        self, peer_id: PeerId, key: Key, spec: Spec, memory: memoryview, settle: Settle
    ) -> None:
        """Transfer the memory to a peer. It must not change until `settle` is called."""
        with self._lock:
            if self._is_over(peer_id, key, settle):
                return
            wanted = self._wants.take(peer_id, key)
            if wanted is not None and not self._agree(peer_id, spec, wanted, settle):
                return
            transfer = _Transfer(spec, memory, settle)
            if not spec.num_bytes:
                self._post(peer_id, about(Kind.OFFER, key, spec), b"")
                settle(None)
                return
            self._sends[peer_id, key] = transfer
            if wanted is None:
                self._post(peer_id, about(Kind.OFFER, key, spec), b"")
            else:
                self._start(peer_id, key, transfer)

    def receive(
        self, peer_id: PeerId, key: Key, spec: Spec, memory: memoryview, settle: Settle
    ) -> None:
        """Let a transfer from a peer land in the memory; whole once `settle` is called."""
        with self._lock:
            if self._is_over(peer_id, key, settle):
                return
            offered = self._offers.take(peer_id, key)
            if offered is not None:
                if not self._agree(peer_id, spec, offered, settle):
                    return
                if not spec.num_bytes:
                    settle(None)
                    return
            self._receives[peer_id, key] = _Transfer(spec, memory, settle, num_left=spec.num_bytes)
            if spec.num_bytes:
                self._post(peer_id, about(Kind.WANT, key, spec), b"")

    def is_offered(self, peer_id: PeerId, key: Key) -> bool:
        """Whether a send of the peer waits for this receive."""
        with self._lock:
            return self._offers.has(peer_id, key)

    def _is_over(self, peer_id: PeerId, key: Key, settle: Settle) -> bool:
        if key.group not in self._num_begun:
            settle(GroupFailed("the group has ended"))
        elif peer_id in self._lost:
            settle(self._lost[peer_id])
        else:
            return False
        return True

    def _agree(self, peer_id: PeerId, ours: Spec, theirs: Spec, settle: Settle) -> bool:
        if ours == theirs:
            return True
        settle(ProtocolViolation(peer_id, f"has {words(theirs)}, but here it is {words(ours)}"))
        return False

    def _start(self, peer_id: PeerId, key: Key, transfer: _Transfer) -> None:
        transfer.has_started = True
        for start in range(0, transfer.spec.num_bytes, CHUNK_BYTES):
            header = about(Kind.DATA, key, transfer.spec, start)
            self._post(peer_id, header, transfer.memory[start : start + CHUNK_BYTES])

    # The Sink of the lanes.

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        if peer_id not in self._members:
            raise ProtocolViolation(peer_id, "is no member of this group of peers")
        message = decode(peer_id, header)
        if message.kind != Kind.DATA:
            if num_bytes:
                raise ProtocolViolation(peer_id, f"{message.kind.name} with a payload")
            return memoryview(bytearray())
        with self._lock:
            return self._place_of(peer_id, message, num_bytes)

    def _place_of(self, peer_id: PeerId, message: Message, num_bytes: int) -> memoryview:
        offset, whole = message.offset, message.num_bytes
        if offset % CHUNK_BYTES or num_bytes != min(CHUNK_BYTES, whole - offset):
            raise ProtocolViolation(peer_id, f"{num_bytes} bytes at {offset} of {whole}")
        transfer = self._receives.get((peer_id, message.key))
        if transfer is None:
            if message.group in self._ended:
                return self._nowhere[:num_bytes]
            raise ProtocolViolation(peer_id, "a payload that was not asked for")
        if message.spec != transfer.spec:
            raise ProtocolViolation(peer_id, f"{words(message.spec)} for {words(transfer.spec)}")
        if offset in transfer.landing:
            raise ProtocolViolation(peer_id, "the same payload twice")
        transfer.landing.add(offset)
        return transfer.memory[offset : offset + num_bytes]

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        message = decode(peer_id, header)
        if message.kind in (Kind.HELLO, Kind.BEAT, Kind.BYE, Kind.FAIL):
            self._on_notice(peer_id, message)
            return
        with self._lock:
            if message.group in self._ended:
                return
            if message.kind == Kind.DATA:
                self._landed(peer_id, message)
            elif message.kind == Kind.DONE:
                self._acknowledged(peer_id, message.key)
            elif message.kind == Kind.OFFER:
                self._hear_offer(peer_id, message)
            else:
                self._hear_want(peer_id, message)

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        if peer_id in self._members:
            self._on_end(peer_id, error)

    def _landed(self, peer_id: PeerId, message: Message) -> None:
        key, spec = message.key, message.spec
        transfer = self._receives.get((peer_id, key))
        if transfer is None:
            return  # given up meanwhile
        transfer.num_left -= min(CHUNK_BYTES, spec.num_bytes - message.offset)
        if not transfer.num_left:
            del self._receives[peer_id, key]
            self._post(peer_id, about(Kind.DONE, key, spec), b"")
            transfer.settle(None)

    def _acknowledged(self, peer_id: PeerId, key: Key) -> None:
        transfer = self._sends.get((peer_id, key))
        if transfer is None or not transfer.has_started:
            raise ProtocolViolation(peer_id, "has received what nobody sent")
        del self._sends[peer_id, key]
        transfer.settle(None)

    def _hear_offer(self, peer_id: PeerId, message: Message) -> None:
        key, spec = message.key, message.spec
        transfer = self._receives.get((peer_id, key))
        if transfer is None:
            if not self._is_late(peer_id, message):
                self._offers.add(peer_id, key, spec)
                if (on_offer := self._offered.get(key.group)) is not None:
                    on_offer()
        elif not self._agree(peer_id, transfer.spec, spec, transfer.settle):
            del self._receives[peer_id, key]
        elif not spec.num_bytes:
            del self._receives[peer_id, key]
            transfer.settle(None)

    def _hear_want(self, peer_id: PeerId, message: Message) -> None:
        key, spec = message.key, message.spec
        transfer = self._sends.get((peer_id, key))
        if transfer is None:
            if not self._is_late(peer_id, message):
                self._wants.add(peer_id, key, spec)
        elif transfer.has_started:
            raise ProtocolViolation(peer_id, "asked for the same payload twice")
        elif self._agree(peer_id, transfer.spec, spec, transfer.settle):
            self._start(peer_id, key, transfer)
        else:
            del self._sends[peer_id, key]

    def _is_late(self, peer_id: PeerId, message: Message) -> bool:
        """Whether it is of a collective that is over here; on several connections this happens.

        Raises ProtocolViolation where the collective runs here as another operation.
        """
        running = self._running.get((message.group, message.number))
        if message.stream or running is None:
            num_begun = self._num_begun.get(message.group, 0)
            return not message.stream and message.number < num_begun
        if running != message.op:
            note = f"is in {message.op.words}, but here it is {running.words}"
            raise ProtocolViolation(peer_id, f"{note} (number {message.number} of the group)")
        return False


def words(spec: Spec) -> str:
    """A transfer as a user understands it."""
    size = f"of shape {spec.shape}" if spec.shape else f"of {spec.num_bytes} bytes"
    return f"{Op(spec.op).words} {size}, {dtype_name(spec.dtype)}"


def peer_words(rank: int, peer_id: PeerId) -> str:
    """A member as a user knows it."""
    return f"rank {rank} (peer {short(peer_id)})"
