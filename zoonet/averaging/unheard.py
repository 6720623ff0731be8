"""Rounds whose chunks nobody here waits for, and what to do with these. Pure, no clock inside.

Chunks of a round may come before this peer has heard of it, so they wait. But a lane brings one
message after the other: where this peer never takes part in that round, all that its sender has
for the next one stands behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

from zoonet.crypto import PeerId

MAX_OVER: Final = 64  # rounds that this peer took part in, whose late chunks are no offence
MAX_WAITING: Final = 4  # rounds of one sender that this peer has not heard of
MAX_SENDERS: Final = 512


class RoundKeys:
    """Tells what of former rounds to read and forget. One thread at a time.

    So are rounds that this peer took part in, for their members. And so is a round that a sender
    was kept waiting for when this peer took up another one together with it: whoever goes on to
    that one has left the first behind. A round that the sender named no earlier than the one taken
    up may still come. What one sender names means nothing for others.
    """

    def __init__(self) -> None:
        self._over: OrderedDict[bytes, frozenset[PeerId]] = OrderedDict()
        # by sender: rounds that it named, oldest first, and whether they are given up
        self._unheard: OrderedDict[PeerId, OrderedDict[bytes, bool]] = OrderedDict()

    def begin(self, key: bytes, members: Collection[PeerId]) -> None:
        """This peer takes part in a round."""
        for peer_id in members:
            for named in self._unheard.get(peer_id, OrderedDict()):
                if named == key:
                    break  # the ones after it may be newer
                self._unheard[peer_id][named] = True

    def end(self, key: bytes, members: Collection[PeerId]) -> None:
        """It takes part in that round no more."""
        self._over[key] = frozenset(members)
        while len(self._over) > MAX_OVER:
            self._over.popitem(last=False)

    def is_foreign(self, key: bytes, sender: PeerId) -> bool:
        """Whether it is over and the sender had no part in it."""
        return key in self._over and sender not in self._over[key]

    def is_over(self, key: bytes, sender: PeerId) -> bool:
        """Whether the sender's chunk of that round can be read and forgotten, or has to wait."""
        if key in self._over:
            return sender in self._over[key]
        named = self._unheard.setdefault(sender, OrderedDict())
        self._unheard.move_to_end(sender)
        if key not in named:
            named[key] = False
            if len(named) > MAX_WAITING:
                named.popitem(last=False)
            if len(self._unheard) > MAX_SENDERS:
                self._unheard.popitem(last=False)
        return named[key]
