"""Where the transfers of all groups meet: sends with wants, receives with offers.

Lanes call it from their own threads, groups from the event loop: one lock guards all of it, and
nothing in it waits. A payload lands in the memory that its receive has posted, after its size,
dtype and place have been checked; what comes early lies aside, within its sender's credit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from zoonet.crypto import PeerId
from zoonet.distributed.notes import COLLECTIVES, Aside, Credit, Early, Notes
from zoonet.distributed.wire import (
    CHUNK_BYTES,
    EARLY_BYTES,
    Key,
    Kind,
    Message,
    Op,
    Spec,
    about,
    decode,
)
from zoonet.distributed.wording import spec_words
from zoonet.errors import GroupFailed, ProtocolViolation, ZoonetError
from zoonet.transport import Buffer

MAX_ENDED: Final = 4096  # groups whose late messages are passed over
NOTICES: Final = frozenset({Kind.HELLO, Kind.BEAT, Kind.BYE, Kind.FAIL, Kind.LOST})
NOTHING: Final = Spec(0, 0, 0)
PAYLOADS: Final = frozenset({Kind.DATA, Kind.EARLY})

Settle = Callable[[ZoonetError | None], None]  # called once, from any thread
Place = tuple[PeerId, Key]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One end of a transfer."""

    spec: Spec
    memory: memoryview
    settle: Settle
    has_started: bool = False  # sending end: the payload has been posted
    is_early: bool = False  # before it was asked for
    num_left: int = 0
    landing: set[int] = field(default_factory=set)  # offsets of chunks that came, or are coming


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
        self._aside, self._credit = Aside(), Credit()
        self._offered: dict[bytes, Callable[[], None]] = {}  # by group, told of new offers
        self._running: dict[tuple[bytes, int], Op] = {}  # collectives that have begun
        self._num_begun: dict[bytes, int] = {}  # by group
        self._num_met: dict[tuple[bytes, PeerId, Kind, int], int] = {}  # of send and recv, by tag
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
            self._drop_notes(lambda key: key.group == group)
            for met in [met for met in self._num_met if met[0] == group]:
                del self._num_met[met]
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
            self._drop_notes(
                lambda key: key[:3] == (group, COLLECTIVES, number)
            )  # some of what was said came late

    def _drop_notes(self, is_over: Callable[[Key], bool]) -> None:
        self._offers.drop(is_over)
        self._wants.drop(is_over)
        for peer_id, key in self._aside.those(is_over):
            self._take(peer_id, key)

    def _take(self, peer_id: PeerId, key: Key) -> None:
        """What came early lies where it belongs, or nobody wants it."""
        self._aside.forget(peer_id, key)
        self._post(peer_id, about(Kind.TAKEN, key, NOTHING), b"")

    def send(
        self, peer_id: PeerId, key: Key, spec: Spec, memory: memoryview, settle: Settle
    ) -> None:
        """Transfer the memory to a peer. It must not change until `settle` is called."""
        with self._lock:
            if self._is_over(key, settle) or self._is_lost(peer_id, settle):
                return
            self._meet(peer_id, Kind.WANT, key)
            wanted = self._wants.take(peer_id, key)
            if wanted is not None and not self._agree(peer_id, spec, wanted, settle):
                return
            transfer = _Transfer(spec, memory, settle)
            if not spec.num_bytes:
                self._post(peer_id, about(Kind.OFFER, key, spec), b"")
                settle(None)
                return
            self._sends[peer_id, key] = transfer
            if wanted is not None:
                self._start(peer_id, key, transfer)
            elif spec.num_bytes <= EARLY_BYTES and self._credit.use(peer_id, key, spec.num_bytes):
                transfer.has_started = transfer.is_early = True
                self._post(peer_id, about(Kind.EARLY, key, spec), memory)
            else:
                self._post(peer_id, about(Kind.OFFER, key, spec), b"")

    def receive(
        self, peer_id: PeerId, key: Key, spec: Spec, memory: memoryview, settle: Settle
    ) -> None:
        """Let a transfer from a peer land in the memory; whole once `settle` is called."""
        with self._lock:
            if self._is_over(key, settle):
                return
            self._meet(peer_id, Kind.OFFER, key)
            early = self._aside.find(peer_id, key)
            offered = early.spec if early is not None else self._offers.take(peer_id, key)
            if offered is not None and not self._agree(peer_id, spec, offered, settle):
                return
            if offered is not None and not spec.num_bytes:
                settle(None)
                return
            has_all = early is not None and early.is_here  # also of a peer that has left since
            if not has_all and self._is_lost(peer_id, settle):
                return
            transfer = _Transfer(spec, memory, settle, num_left=spec.num_bytes)
            self._receives[peer_id, key] = transfer
            if early is not None:
                self._settle_early(peer_id, key, transfer, early)
            elif spec.num_bytes:
                self._post(peer_id, about(Kind.WANT, key, spec), b"")

    def is_offered(self, peer_id: PeerId, key: Key) -> bool:
        """Whether a send of the peer waits for this receive."""
        with self._lock:
            early = self._aside.find(peer_id, key)
            return self._offers.has(peer_id, key) or (early is not None and early.is_here)

    def _settle_early(self, peer_id: PeerId, key: Key, transfer: _Transfer, early: Early) -> None:
        """Bring together a receive and what came before it, once that is complete."""
        if early.is_here:
            transfer.memory[:] = early.memory
            del self._receives[peer_id, key]
            self._take(peer_id, key)
            transfer.settle(None)

    def _meet(self, peer_id: PeerId, kind: Kind, key: Key) -> None:
        if key.stream != COLLECTIVES:
            self._num_met[key.group, peer_id, kind, key.tag] = key.number + 1

    def _is_over(self, key: Key, settle: Settle) -> bool:
        if is_over := key.group not in self._num_begun:
            settle(GroupFailed("the group has ended"))
        return is_over

    def _is_lost(self, peer_id: PeerId, settle: Settle) -> bool:
        if is_lost := peer_id in self._lost:
            settle(self._lost[peer_id])
        return is_lost

    def _agree(self, peer_id: PeerId, ours: Spec, theirs: Spec, settle: Settle) -> bool:
        if ours == theirs:
            return True
        settle(
            ProtocolViolation(
                peer_id, f"has {spec_words(theirs)}, but here it is {spec_words(ours)}"
            )
        )
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
        if message.kind not in PAYLOADS:
            if num_bytes:
                raise ProtocolViolation(peer_id, f"{message.kind.name} with a payload")
            return memoryview(bytearray())
        with self._lock:
            if message.kind == Kind.DATA:
                return self._place_of(peer_id, message, num_bytes)
            return self._place_of_early(peer_id, message, num_bytes)

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
            told, here = spec_words(message.spec), spec_words(transfer.spec)
            raise ProtocolViolation(peer_id, f"sends {told}, was asked for {here}")
        if offset in transfer.landing:
            raise ProtocolViolation(peer_id, "the same payload twice")
        transfer.landing.add(offset)
        return transfer.memory[offset : offset + num_bytes]

    def _place_of_early(self, peer_id: PeerId, message: Message, num_bytes: int) -> memoryview:
        key, spec = message.key, message.spec
        if not 0 < num_bytes == spec.num_bytes <= EARLY_BYTES:
            raise ProtocolViolation(peer_id, f"{num_bytes} bytes unasked, of {spec.num_bytes}")
        if key.group in self._ended:
            return self._nowhere[:num_bytes]
        transfer = self._receives.get((peer_id, key))
        if transfer is None or transfer.landing:
            self._is_late(peer_id, message)
            return memoryview(self._aside.add(peer_id, key, spec).memory)
        if not self._agree(peer_id, transfer.spec, spec, transfer.settle):
            del self._receives[peer_id, key]
            return self._nowhere[:num_bytes]
        transfer.landing.add(0)
        return transfer.memory

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        message = decode(peer_id, header)
        if message.kind in NOTICES:
            self._on_notice(peer_id, message)
            return
        with self._lock:
            if message.kind == Kind.TAKEN:
                if not self._credit.give_back(peer_id, message.key):
                    raise ProtocolViolation(peer_id, "has taken what nobody sent")
            elif message.kind == Kind.EARLY:
                self._came_early(peer_id, message)
            elif message.group in self._ended:
                return
            elif message.kind == Kind.DATA:
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

    def _came_early(self, peer_id: PeerId, message: Message) -> None:
        key = message.key
        self._post(peer_id, about(Kind.DONE, key, NOTHING), b"")
        transfer, early = self._receives.get((peer_id, key)), self._aside.find(peer_id, key)
        if early is not None and key.group not in self._ended:
            early.is_here = True
            if transfer is not None:
                self._settle_early(peer_id, key, transfer, early)
            elif (on_offer := self._offered.get(key.group)) is not None:
                on_offer()
            return
        self._take(peer_id, key)
        if transfer is not None:
            del self._receives[peer_id, key]
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
        elif transfer.is_early:
            self._agree(peer_id, transfer.spec, spec, transfer.settle)  # the two crossed
        elif transfer.has_started:
            raise ProtocolViolation(peer_id, "asked for the same payload twice")
        elif self._agree(peer_id, transfer.spec, spec, transfer.settle):
            self._start(peer_id, key, transfer)
        else:
            del self._sends[peer_id, key]

    def _is_late(self, peer_id: PeerId, message: Message) -> bool:
        """Whether it is of a transfer that is over here; on several connections this happens.

        Raises ProtocolViolation where the collective runs here as another operation.
        """
        if message.stream != COLLECTIVES:
            met = (message.group, peer_id, message.kind, message.tag)
            return message.number < self._num_met.get(met, 0)
        running = self._running.get((message.group, message.number))
        if running is None:
            return message.number < self._num_begun.get(message.group, 0)
        if running != message.op:
            note = f"is in {message.op.words}, but here it is {running.words}"
            raise ProtocolViolation(peer_id, f"{note} (number {message.number} of the group)")
        return False
