"""A loop's place in the swarm: the network in a thread of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zoonet.blocks import BlockExchange
from zoonet.client.entry import Entry, EntryConfig
from zoonet.clock import Clock, SystemClock
from zoonet.crypto import Identity
from zoonet.records import RecordStore
from zoonet.transport import Lanes, Transport

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
_TEMPORARY: Final = "zoonet-loop-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a run stands on."""

    identity: Identity
    clock: Clock
    transport: Transport
    lanes: Lanes
    records: RecordStore
    exchange: BlockExchange


@asynccontextmanager
async def place_in_swarm(
    identity: Identity, bootstrap: tuple[str, ...], listen: tuple[str, ...], name: str
) -> AsyncIterator[Place]:
    """Be in the swarm while the block runs. Raises as `Entry.open`.

    Blocks lie in a temporary folder: who comes back fetches them again.
    """
    from zoonet.net.addresses import is_loopback

    is_local = bool(bootstrap) and all(is_loopback(address) for address in bootstrap)
    folder = await asyncio.to_thread(tempfile.mkdtemp, prefix=_TEMPORARY)
    try:
        config = EntryConfig(
            folder=Path(folder),
            listen=listen or ((LOOPBACK,) if is_local else EntryConfig().listen),
            is_lan_enabled=not is_local,
            name=name,
        )
        entry = await Entry.open(identity, bootstrap, config)
        try:
            yield await _place_at(entry)
        finally:
            await entry.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _place_at(entry: Entry) -> Place:
    exchange = BlockExchange(entry.transport, entry.store)
    await exchange.serve()
    return Place(
        identity=entry.identity,
        clock=SystemClock(),
        transport=entry.transport,
        lanes=entry.host.lanes,
        records=entry.records,
        exchange=exchange,
    )
