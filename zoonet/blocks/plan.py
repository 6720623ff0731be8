"""Which block to ask of which holder next. Pure: no clock, no socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from zoonet.crypto import PeerId

FIRST_PATIENCE_S: Final = 3.0  # before any block has arrived
MIN_PATIENCE_S: Final = 1.0
PATIENCE_FACTOR: Final = 4.0  # times the mean time of a block


class FetchPlan:
    """The state of one fetch of many blocks from many holders.

    A block is asked of one holder at a time. Once nothing else is left to ask for, a block that
    has been under way for longer than the patience is asked of another holder as well, so that a
    stalled holder costs a few seconds and never the fetch.
    """

    def __init__(self, cids: Iterable[str], holders: Iterable[PeerId]) -> None:
        self._waiting = deque(dict.fromkeys(cids))
        self._missing = set(self._waiting)
        self._under_way: dict[str, dict[PeerId, float]] = {}  # when it was asked of whom
        self._lacking: dict[str, set[PeerId]] = {cid: set() for cid in self._waiting}
        self._holders = set(holders)
        self._mean_s = 0.0

    @property
    def is_done(self) -> bool:
        """Whether every block has arrived."""
        return not self._missing

    @property
    def patience_s(self) -> float:
        """How long a block may be under way before another holder is asked, too."""
        if not self._mean_s:
            return FIRST_PATIENCE_S
        return max(MIN_PATIENCE_S, PATIENCE_FACTOR * self._mean_s)

    def unavailable(self) -> str:
        """A block that no remaining holder has, or ""."""
        for cid in self._missing:
            if not self._holders - self._lacking[cid]:
                return cid
        return ""

    def take(self, holder: PeerId, now: float) -> str:
        """Return the block to ask of this holder now, or "" where it must wait."""
        for _ in range(len(self._waiting)):
            cid = self._waiting.popleft()
            if cid not in self._missing:
                continue
            if holder not in self._lacking[cid]:
                self._under_way[cid] = {holder: now}
                return cid
            self._waiting.append(cid)
        for cid, asked in self._under_way.items():
            if holder in asked or holder in self._lacking[cid]:
                continue
            if now >= max(asked.values()) + self.patience_s:
                asked[holder] = now
                return cid
        return ""

    def wait_s(self, holder: PeerId, now: float) -> float:
        """Seconds until `take` may have something for this holder if nothing else happens."""
        due = [
            max(asked.values()) + self.patience_s - now
            for cid, asked in self._under_way.items()
            if holder not in asked and holder not in self._lacking[cid]
        ]
        return max(0.0, min(due, default=self.patience_s))

    def arrived(self, cid: str, holder: PeerId, now: float) -> None:
        """The holder sent the right bytes."""
        asked_at = self._under_way.pop(cid, {}).get(holder, now)
        self._missing.discard(cid)
        took_s = now - asked_at
        self._mean_s = took_s if not self._mean_s else 0.8 * self._mean_s + 0.2 * took_s

    def lacks(self, cid: str, holder: PeerId) -> None:
        """The holder answered that it does not have the block."""
        self._lacking[cid].add(holder)
        self.release(cid, holder)

    def drop(self, holder: PeerId) -> None:
        """The holder is gone, stalled or not to be believed."""
        self._holders.discard(holder)
        for cid in list(self._under_way):
            self.release(cid, holder)

    def release(self, cid: str, holder: PeerId) -> None:
        """The holder will not answer for this block; another may be asked."""
        asked = self._under_way.get(cid, {})
        asked.pop(holder, None)
        if not asked and self._under_way.pop(cid, None) is not None:
            self._waiting.appendleft(cid)
