"""A record store that reads what is gossiped from the table, and asks the DHT for the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from zoonet.errors import TransportError
from zoonet.membership.gossip.item import GOSSIPED
from zoonet.membership.gossip.registry import Registry
from zoonet.records import JOBS_KEY, RecordStore, Signed
from zoonet.records.envelope import B


class RegistryRecords:
    """The `RecordStore` of a peer with a registry; see `zoonet.records.RecordStore`.

    The list of jobs is read from a complete table alone; a job's record from the table, then from
    other peers, then from the DHT. What is published goes both ways, so that a
    newcomer without a table still finds it on the DHT.
    """

    def __init__(self, registry: Registry, beneath: RecordStore) -> None:
        self._registry = registry
        self._beneath = beneath

    @property
    def refusals(self) -> dict[str, int]:
        return self._beneath.refusals

    async def publish(self, record: Signed[Any]) -> None:
        self._registry.publish(record)
        try:
            await self._beneath.publish(record)
        except TransportError:
            # Neighbours have it already; alone, it reached nobody.
            is_told = record.body.KIND in GOSSIPED and self._registry.machine.table.num_members > 1
            if not is_told:
                raise

    async def fetch(self, key: str, body_type: type[B]) -> list[Signed[B]]:
        if key == JOBS_KEY and self._registry.is_complete:
            found = self._registry.find_here(key)  # a list: the table has all of it
            return [record for record in found if isinstance(record.body, body_type)]
        if body_type.KIND in GOSSIPED and self._registry.is_complete:
            found = await self._registry.find(key)
            if found:
                return [record.expect(body_type) for record in found]
        return await self._beneath.fetch(key, body_type)

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        await self._beneath.announce(topic, record)

    def listen(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Signed[Any]]]:
        return self._beneath.listen(topic)
