"""What other peers said or sent of transfers that nobody here has met yet. Bounded for each peer.

Used under the mailbox's lock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zoonet.crypto import PeerId
from zoonet.distributed.wire import CREDIT_BYTES, Key, Spec
from zoonet.errors import ProtocolViolation

MAX_NOTES: Final = 16_384  # offers, wants and early tensors of one peer
COLLECTIVES: Final = 0  # the stream


class Notes:
    """Offers, or wants, by peer and transfer."""

    def __init__(self) -> None:
        self._by_peer: defaultdict[PeerId, dict[Key, Spec]] = defaultdict(dict)

    def add(self, peer_id: PeerId, key: Key, spec: Spec) -> None:
        """Keep one. Raises ProtocolViolation where there are too many, or it is there already."""
        notes = self._by_peer[peer_id]
        if key in notes:
            raise ProtocolViolation(peer_id, "spoke of the same transfer twice")
        if len(notes) >= MAX_NOTES:
            raise ProtocolViolation(peer_id, f"more than {MAX_NOTES} transfers at once")
        notes[key] = spec

    def take(self, peer_id: PeerId, key: Key) -> Spec | None:
        """Return and forget it."""
        return self._by_peer[peer_id].pop(key, None)

    def has(self, peer_id: PeerId, key: Key) -> bool:
        """Whether there is one."""
        return key in self._by_peer[peer_id]

    def drop(self, is_over: Callable[[Key], bool]) -> None:
        """Forget those of transfers that will not be."""
        for notes in self._by_peer.values():
            for key in list(filter(is_over, notes)):
                del notes[key]


@dataclass(slots=True, eq=False)
class Early:
    """A tensor that came before its receive, or is coming."""

    spec: Spec
    memory: bytearray
    is_here: bool = False


class Aside:
    """Tensors that came early, by peer and transfer: at most CREDIT_BYTES of each peer."""

    def __init__(self) -> None:
        self._by_peer: defaultdict[PeerId, dict[Key, Early]] = defaultdict(dict)
        self._num_bytes: Counter[PeerId] = Counter()

    def add(self, peer_id: PeerId, key: Key, spec: Spec) -> Early:
        """Make room for one. Raises ProtocolViolation where there is none, or it came already."""
        there = self._by_peer[peer_id]
        if key in there:
            raise ProtocolViolation(peer_id, "sent the same tensor twice")
        if self._num_bytes[peer_id] + spec.num_bytes > CREDIT_BYTES or len(there) >= MAX_NOTES:
            raise ProtocolViolation(peer_id, "sent more unasked than it has credit for")
        self._num_bytes[peer_id] += spec.num_bytes
        early = there[key] = Early(spec, bytearray(spec.num_bytes))
        return early

    def find(self, peer_id: PeerId, key: Key) -> Early | None:
        """The one of a transfer."""
        return self._by_peer[peer_id].get(key)

    def forget(self, peer_id: PeerId, key: Key) -> None:
        """It has been taken, or nobody will."""
        early = self._by_peer[peer_id].pop(key, None)
        if early is not None:
            self._num_bytes[peer_id] -= early.spec.num_bytes

    def those(self, is_over: Callable[[Key], bool]) -> list[tuple[PeerId, Key]]:
        """All that are of certain transfers and complete."""
        return [
            (peer_id, key)
            for peer_id, there in self._by_peer.items()
            for key, early in there.items()
            if early.is_here and is_over(key)
        ]


class Credit:
    """How much this peer may still send unasked to each other one."""

    def __init__(self) -> None:
        self._used: defaultdict[PeerId, dict[Key, int]] = defaultdict(dict)
        self._num_bytes: Counter[PeerId] = Counter()

    def use(self, peer_id: PeerId, key: Key, num_bytes: int) -> bool:
        """Take some, until it is given back; False where there is not enough."""
        used = self._used[peer_id]
        if self._num_bytes[peer_id] + num_bytes > CREDIT_BYTES or len(used) >= MAX_NOTES:
            return False
        self._num_bytes[peer_id] += num_bytes
        used[key] = num_bytes
        return True

    def give_back(self, peer_id: PeerId, key: Key) -> bool:
        """The peer has taken a tensor; False where none was sent."""
        num_bytes = self._used[peer_id].pop(key, None)
        if num_bytes is None:
            return False
        self._num_bytes[peer_id] -= num_bytes
        return True
