"""What every record passes on its way in, from the DHT and from topics alike."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, Final

from zoonet.clock import Clock
from zoonet.crypto import PeerId, sha256
from zoonet.errors import InvalidRecord
from zoonet.records import MAX_RECORD_BYTES, ReplayGuard, Signed, verify

MAX_REMEMBERED_BYTES: Final = 1024 * 1024  # of records as they came; decoded they take three more


class Gate:
    """Verifies records, refuses replays and equivocations, and counts refusals by reason.

    Replicas hand over the same bytes again and again: what was verified once is remembered by
    its digest (bounded in bytes), and only its time is checked again. Of an author's records in
    one place that is the newest: an older one hardly ever comes again.
    """

    def __init__(self, clock: Clock, *, max_remembered_bytes: int = MAX_REMEMBERED_BYTES) -> None:
        self._clock = clock
        self._max_remembered_bytes = max_remembered_bytes
        self._guard = ReplayGuard(clock.now)
        self._verified: OrderedDict[bytes, Signed[Any]] = OrderedDict()  # by digest
        self._newest: dict[tuple[str, str, str], bytes] = {}  # their digests, by slot
        self.refusals: Counter[str] = Counter()
        self.remembered_bytes = 0  # of records as they came

    def now(self) -> float:
        """Unix time in seconds."""
        return self._clock.now()

    def admit(self, raw: bytes) -> Signed[Any]:
        """Return the record. Raises InvalidRecord; the caller counts it with `refuse`."""
        record = self._verify(raw)
        self._guard.admit(record)
        return record

    def _verify(self, raw: bytes) -> Signed[Any]:
        if len(raw) > MAX_RECORD_BYTES:
            raise InvalidRecord("", "oversized", f"{len(raw)} bytes")
        digest = sha256(raw)
        known = self._verified.get(digest)
        if known is not None and known.expires_at > self.now():
            self._verified.move_to_end(digest)
            return known
        record = verify(raw, now=self.now())
        self._remember(digest, record)
        return record

    def _remember(self, digest: bytes, record: Signed[Any]) -> None:
        before = self._newest.get(record.slot)
        if before is not None:
            if not record.is_newer_than(self._verified[before]):
                return
            self._forget(before)
        self._verified[digest] = record
        self._newest[record.slot] = digest
        self.remembered_bytes += len(record.raw)
        while self.remembered_bytes > self._max_remembered_bytes:
            self._forget(next(iter(self._verified)))

    def _forget(self, digest: bytes) -> None:
        record = self._verified.pop(digest)
        del self._newest[record.slot]
        self.remembered_bytes -= len(record.raw)

    def refuse(self, error: InvalidRecord) -> None:
        """Count a refusal."""
        self.refusals[error.reason] += 1

    def require_author(self, record: Signed[Any], sender: PeerId) -> None:
        """Raise InvalidRecord where a record is brought by another than its author."""
        if record.author != sender:
            raise InvalidRecord(record.author, "misplaced", f"brought by {sender[-8:]}")
