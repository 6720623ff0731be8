"""The narrow door to other peers: framed, authenticated, two-way streams by peer id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from zoonet.crypto import PeerId

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """One conversation with one peer, whose identity the transport has proven."""

    @property
    def peer_id(self) -> PeerId:
        """The other side."""
        ...

    async def send(self, frame: Buffer) -> None:
        """Send one frame of at most MAX_FRAME_BYTES, waiting while the other side is slow.

        Raises StreamClosed where the other side has gone.
        """
        ...

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        """Return the next frame.

        Raises StreamClosed where the stream ended, ProtocolViolation for a frame that claims
        more than `max_bytes` (refused before any of it is read).
        """
        ...

    async def close(self) -> None:
        """End the stream. Frames already sent still arrive. Idempotent."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """Opens and serves streams. Errors are TransportError and ProtocolViolation, nothing else."""

    @property
    def peer_id(self) -> PeerId:
        """This side."""
        ...

    @property
    def sent_bytes(self) -> int:
        """Payload bytes sent so far, over all streams."""
        ...

    @property
    def received_bytes(self) -> int:
        """Payload bytes received so far, over all streams."""
        ...

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` in a task of its own for every stream that peers open.

        The stream is closed when the handler returns; what it raises ends that stream alone.
        Serving a protocol again replaces its handler.
        """
        ...

    async def unserve(self, protocol: str) -> None:
        """Refuse the protocol's streams from now on; those that are open go on. Idempotent.

        Whoever knew of it may get a stream that ends at once, rather than PeerUnreachable.
        """
        ...

    async def open(self, peer_id: PeerId, protocol: str) -> Stream:
        """Open a stream. Raises PeerUnreachable."""
        ...
