"""A stream from a peer to itself: a coordinator is also a member of the round it leads."""

from __future__ import annotations

import asyncio

from zoonet.crypto import PeerId
from zoonet.errors import StreamClosed
from zoonet.transport.streams import MAX_FRAME_BYTES, Buffer


class LocalStream:
    """One end of a pair inside one process; see `local_pair`."""

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._other: LocalStream | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: Buffer) -> None:
        if self._other is None:
            raise StreamClosed("the local stream is closed")
        self._other._inbox.put_nowait(bytes(frame))

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        frame = await self._inbox.get()
        if frame is None:
            self._inbox.put_nowait(None)
            raise StreamClosed("the local stream ended")
        return frame

    async def close(self) -> None:
        other, self._other = self._other, None
        if other is not None:
            other._other = None
            other._inbox.put_nowait(None)


def local_pair(peer_id: PeerId) -> tuple[LocalStream, LocalStream]:
    """Two connected ends, both of which belong to `peer_id`."""
    left, right = LocalStream(peer_id), LocalStream(peer_id)
    left._other, right._other = right, left
    return left, right
