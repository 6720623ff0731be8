"""The narrow door to wherever records live: a DHT and topics on the net, dictionaries in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from zoonet.records.envelope import B, Signed


class RecordStore(Protocol):
    """Where peers leave records for each other (`publish`, `fetch`) and call out (`announce`).

    Implementations verify every record that comes in, count what they refuse in `refusals` by
    reason, and never return or deliver an unverified one.
    """

    @property
    def refusals(self) -> dict[str, int]:
        """How many records were refused so far, by reason."""
        ...

    async def publish(self, record: Signed[Any]) -> None:
        """Store the record under its key until it expires, replacing its author's older one.

        Raises TransportError where no peer could be reached to store it.
        """
        ...

    async def fetch(self, key: str, body_type: type[B]) -> list[Signed[B]]:
        """Return the newest unexpired record of each author under the key, in author order."""
        ...

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        """Send the record to everyone who listens to the topic. Best effort."""
        ...

    def listen(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Signed[Any]]]:
        """Subscribe to a topic while the context is open.

        The iterator is bounded: a slow reader loses the oldest records, not the newest.
        """
        ...
