"""The records that this peer keeps for others: one per key and author, bounded in every way."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Final

from zoonet.crypto import PeerId
from zoonet.records import Signed

MAX_SHELF_BYTES: Final = 64 * 1024 * 1024
MAX_RECORDS_PER_KEY: Final = 2048


class Shelf:
    """Holds the newest record of each author under each key until it expires.

    Newest is by sequence, never by expiry, so an old record cannot displace or shorten a newer
    one. When it is full, what expires first goes first.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        max_bytes: int = MAX_SHELF_BYTES,
        max_records_per_key: int = MAX_RECORDS_PER_KEY,
    ) -> None:
        self._now = now
        self._max_bytes = max_bytes
        self._max_records_per_key = max_records_per_key
        self._records: dict[bytes, dict[PeerId, Signed[Any]]] = {}
        self._by_expiry: list[tuple[float, int, bytes, PeerId]] = []
        self._num_records = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._num_records

    def put(self, key_id: bytes, record: Signed[Any]) -> bool:
        """Keep the record; return False where an equal or newer one of its author stands."""
        self._drop_expired()
        shelf = self._records.setdefault(key_id, {})
        known = shelf.get(record.author)
        if known is not None:
            if known.sequence > record.sequence:
                return False
            if known.raw == record.raw:
                return True
            self._remove(key_id, record.author)
            shelf = self._records.setdefault(key_id, {})
        if len(shelf) >= self._max_records_per_key:
            first = min(shelf.values(), key=lambda kept: kept.expires_at)
            if first.expires_at >= record.expires_at:
                return False
            self._remove(key_id, first.author)
            shelf = self._records.setdefault(key_id, {})
        shelf[record.author] = record
        self._num_records += 1
        self.num_bytes += len(record.raw)
        entry = (record.expires_at, record.sequence, key_id, record.author)
        heapq.heappush(self._by_expiry, entry)
        while self.num_bytes > self._max_bytes:
            self._drop_first()
        return True

    def get(self, key_id: bytes) -> list[Signed[Any]]:
        """Every unexpired record under the key."""
        self._drop_expired()
        return list(self._records.get(key_id, {}).values())

    def key_ids(self) -> Iterator[bytes]:
        """Every key that records stand under."""
        self._drop_expired()
        return iter(list(self._records))

    def _drop_expired(self) -> None:
        now = self._now()
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._drop_first()

    def _drop_first(self) -> None:
        expires_at, sequence, key_id, author = heapq.heappop(self._by_expiry)
        known = self._records.get(key_id, {}).get(author)
        if known is not None and (known.expires_at, known.sequence) == (expires_at, sequence):
            self._remove(key_id, author)

    def _remove(self, key_id: bytes, author: PeerId) -> None:
        shelf = self._records[key_id]
        record = shelf.pop(author)
        self._num_records -= 1
        self.num_bytes -= len(record.raw)
        if not shelf:
            del self._records[key_id]
        if len(self._by_expiry) > 4 * self._num_records + 64:
            self._by_expiry = [
                (kept.expires_at, kept.sequence, key, kept.author)
                for key, records in self._records.items()
                for kept in records.values()
            ]
            heapq.heapify(self._by_expiry)
