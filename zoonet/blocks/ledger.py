"""What a block store holds, in which order it lets go of it, and what it must keep. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from zoonet.errors import StorageError


class Ledger:
    """Which blocks are here, how large, how recently used, and pinned by whom. Pure."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pins: dict[str, set[str]] = {}
        self._reserved_bytes = 0  # of blocks that are being written

    def add(self, cid: str, num_bytes: int) -> None:
        self.remove(cid)
        self.sizes[cid] = num_bytes
        self.size_bytes += num_bytes

    def remove(self, cid: str) -> None:
        self.size_bytes -= self.sizes.pop(cid, 0)

    def touch(self, cid: str) -> None:
        self.sizes.move_to_end(cid)

    def pin(self, owner: str, cids: Iterable[str]) -> None:
        self._pins.setdefault(owner, set()).update(cids)

    def unpin(self, owner: str) -> None:
        self._pins.pop(owner, None)

    def reserve(self, num_bytes: int) -> list[str]:
        """Set room aside until `release`; return the blocks to evict for it.

        Raises StorageError, and reserves nothing, where too much is pinned.
        """
        chosen = self._victims(num_bytes)
        self._reserved_bytes += num_bytes
        return chosen

    def release(self, num_bytes: int) -> None:
        """The block is stored and added, or was given up."""
        self._reserved_bytes -= num_bytes

    def _victims(self, num_bytes: int) -> list[str]:
        excess = self.size_bytes + self._reserved_bytes + num_bytes - self.max_bytes
        if excess <= 0:
            return []
        pinned = set().union(*self._pins.values())
        chosen = []
        for cid, size in self.sizes.items():
            if excess <= 0:
                break
            if cid not in pinned:
                chosen.append(cid)
                excess -= size
        if excess > 0:
            raise StorageError(
                f"the block store is full: {self.size_bytes:,} of {self.max_bytes:,} bytes are "
                "used, most by jobs that still run; raise its limit or leave a job"
            )
        return chosen
