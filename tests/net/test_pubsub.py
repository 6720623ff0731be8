"""The queue between a topic and its listener."""

from __future__ import annotations

import asyncio

import pytest

from tests.contracts.networks import identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.errors import StreamClosed, TransportError
from zoonet.net.pubsub import MAX_QUEUED, _drain, _Item, _put
from zoonet.testing import run


def test_a_slow_reader_loses_the_oldest_and_memory_stays_bounded() -> None:
    async def story() -> None:
        queue: asyncio.Queue[_Item] = asyncio.Queue(MAX_QUEUED)
        for sequence in range(1, 1001):
            _put(queue, peer_record(identity_of("eve"), sequence=sequence))
        reader = _drain(queue)
        seen = [(await anext(reader)).sequence for _ in range(MAX_QUEUED)]
        assert seen == list(range(1001 - MAX_QUEUED, 1001))
        assert queue.empty()

    run(story())


def test_the_end_of_a_topic_reaches_its_reader() -> None:
    async def story() -> None:
        queue: asyncio.Queue[_Item] = asyncio.Queue(MAX_QUEUED)
        _put(queue, StreamClosed("the daemon is gone"))
        with pytest.raises(TransportError, match="the daemon is gone"):
            await anext(_drain(queue))

    run(story())
