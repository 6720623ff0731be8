"""Live events: records on GossipSub topics, checked before anyone sees them."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from zoonet.crypto import PeerId
from zoonet.errors import InvalidRecord, TransportError, ZoonetError
from zoonet.net.control import Control, Reader, peer_id_of_raw, read_message
from zoonet.net.foreign import foreign_errors
from zoonet.net.gate import Gate
from zoonet.net.substrate import p2pd_pb2
from zoonet.records import MAX_RECORD_BYTES, Signed

TOPIC_PREFIX: Final = "zoonet/"
MAX_QUEUED: Final = 256

log = logging.getLogger(__name__)

_Item = Signed[Any] | BaseException


class Gossip:
    """Announces records on topics and listens to them."""

    def __init__(self, control: Control, gate: Gate, peer_id: PeerId) -> None:
        self._control = control
        self._gate = gate
        self._peer_id = peer_id

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        """Send a record of our own to everyone who listens to the topic.

        Raises ValueError for another author's record: receivers refuse those.
        """
        if len(record.raw) > MAX_RECORD_BYTES:
            raise ValueError(f"a message of {len(record.raw)} bytes, at most {MAX_RECORD_BYTES}")
        if record.author != self._peer_id:
            raise ValueError("only its author may announce a record")
        await self._control.publish(TOPIC_PREFIX + topic, record.raw)

    async def subscribers(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers that listen to the topic."""
        return await self._control.subscribers(TOPIC_PREFIX + topic)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Signed[Any]]]:
        """Yield an iterator over the topic's verified records; a slow reader loses the oldest.

        The iterator raises TransportError where the daemon is gone.
        """
        reader, writer = await self._control.subscribe(TOPIC_PREFIX + topic)
        queue: asyncio.Queue[_Item] = asyncio.Queue(MAX_QUEUED)
        pump = asyncio.create_task(self._pump(reader, queue), name=f"topic {topic}")
        pump.add_done_callback(functools.partial(_tell_end, queue))
        try:
            yield _drain(queue)
        finally:
            pump.cancel()
            await asyncio.wait([pump])
            writer.close()

    async def _pump(self, reader: Reader, queue: asyncio.Queue[_Item]) -> None:
        while True:
            with foreign_errors(doing="listening to a topic"):
                message = await read_message(reader, p2pd_pb2.PSMessage())
            record = self._check(message)
            if record is not None:
                _put(queue, record)

    def _check(self, message: Any) -> Signed[Any] | None:
        try:
            record = self._gate.admit(message.data)
            # `from` is proven by the daemon; a replay by a third party ends here.
            self._gate.require_author(record, peer_id_of_raw(getattr(message, "from")))
        except InvalidRecord as error:
            self._gate.refuse(error)
            log.debug("refused an announcement: %s", error)
            return None
        return record


def _put(queue: asyncio.Queue[_Item], item: _Item) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)


def _tell_end(queue: asyncio.Queue[_Item], pump: asyncio.Task[None]) -> None:
    """Pass what ended the pump on to its reader, who would wait for ever otherwise."""
    if not pump.cancelled() and (error := pump.exception()) is not None:
        _put(queue, error)


async def _drain(queue: asyncio.Queue[_Item]) -> AsyncIterator[Signed[Any]]:
    while True:
        item = await queue.get()
        if isinstance(item, ZoonetError):
            raise TransportError(f"the topic ended: {item}") from item
        if isinstance(item, BaseException):
            raise item
        yield item
