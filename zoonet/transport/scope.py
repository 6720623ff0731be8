"""Serving protocols for as long as something lasts, such as a job."""

from __future__ import annotations

import logging

from zoonet.crypto import PeerId
from zoonet.errors import TransportError
from zoonet.transport.streams import Stream, StreamHandler, Transport

log = logging.getLogger(__name__)


class ServingScope:
    """A peer's transport, which remembers what was served through it, to end all of it at once."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._protocols: set[str] = set()

    @property
    def peer_id(self) -> PeerId:
        return self._transport.peer_id

    @property
    def sent_bytes(self) -> int:
        return self._transport.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._transport.received_bytes

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._protocols.add(protocol)
        await self._transport.serve(protocol, handler)

    async def unserve(self, protocol: str) -> None:
        self._protocols.discard(protocol)
        await self._transport.unserve(protocol)

    async def open(self, peer_id: PeerId, protocol: str) -> Stream:
        return await self._transport.open(peer_id, protocol)

    async def end(self) -> None:
        """Serve none of it any more. Streams that are open go on. Idempotent."""
        for protocol in sorted(self._protocols):
            try:
                await self.unserve(protocol)
            except TransportError as error:
                log.debug("protocol=%s is refused here only: %s", protocol, error)
