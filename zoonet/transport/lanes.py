"""The wide door to other peers: one-way lanes for bulk bytes that arrive where they belong.

A message is a small header and a payload. The receiver looks at the header and says where the
payload goes before any of it is read, so nothing is copied on the way and nothing is allocated
because a stranger said so. A lane carries messages of one peer, one channel and one direction; on
a long way over several connections at once, so that a message may overtake another. Whether it is
shared memory, TLS or a stream through a relay shows only in `Lane.path`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.transport.streams import MAX_FRAME_BYTES, Buffer

MAX_HEADER_BYTES: Final = 1024
MAX_PAYLOAD_BYTES: Final = MAX_FRAME_BYTES - 4096  # so that a message fits into one frame

Path = Literal["shm", "direct", "stream", "relayed"]


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What traffic so far has shown of the link to a peer; 0 where nothing is known."""

    rtt_s: float  # least round trip lately
    up_bytes_per_s: float  # as sent to the peer while there was something to send
    down_bytes_per_s: float  # as received while a payload was under way
    path: Path  # of the newest lane to the peer


@dataclass(frozen=True, slots=True)
class LineStats:
    """How fast the links to faraway peers are together; 0 where nothing is known."""

    up_bytes_per_s: float  # while there was something to send over any of them
    down_bytes_per_s: float  # while something came over any of them


class Sink(Protocol):
    """What messages of a channel arrive in.

    All methods are called from a lane's own thread (of a lane over streams: from the event loop),
    of several lanes at once. They may take their time: only that lane waits.
    """

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview | None:
        """Return where the payload goes: a writable buffer of exactly `num_bytes` bytes.

        None means "not yet": the lane asks again now and then, and after `Lanes.ask_again`, for as
        long as its patience lasts. Raises ProtocolViolation for a message that is refused, which
        ends the lane.
        """
        ...

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        """The payload is complete. Raises ProtocolViolation where it is not what was promised."""
        ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        """A lane of that peer ended, and this is why; it may open another one."""
        ...


class Lane(Protocol):
    """The sending end of a lane."""

    @property
    def peer_id(self) -> PeerId:
        """The other side."""
        ...

    @property
    def path(self) -> Path:
        """How the bytes travel."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were posted, headers included, and have not left yet."""
        ...

    def post(self, header: bytes, payload: Buffer) -> None:
        """Send soon, in the order of posting. Never blocks; callable from every thread.

        The payload is not copied: it must not change until it has left. On a lane that has ended
        this does nothing.
        """
        ...

    def drop(self) -> None:
        """Forget what was posted and has not begun to leave. Callable from every thread."""
        ...

    async def close(self) -> None:
        """Let what was posted leave for a moment, then end the lane. Idempotent."""
        ...


LaneEnded = Callable[[Lane, ZoonetError], None]


class Lanes(Protocol):
    """Opens and serves lanes. Errors are TransportError and ProtocolViolation, nothing else."""

    @property
    def peer_id(self) -> PeerId:
        """This side."""
        ...

    async def serve(self, channel: str, sink: Sink) -> None:
        """Let messages of a channel arrive in `sink`. Serving it again replaces the sink."""
        ...

    async def unserve(self, channel: str) -> None:
        """Stop serving a channel and end its incoming lanes."""
        ...

    async def open(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane:
        """Open a lane by the best path there is. Raises PeerUnreachable or PeerTimeout.

        `on_end` is called once, from any thread, when the lane ends other than by `close`.
        """
        ...

    async def open_ahead(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane | None:
        """Open a lane before there is anything to send; None where that would be over a stream.

        Such a one ends where nothing comes over it. Errors are those of `open`.
        """
        ...

    def ask_again(self) -> None:
        """Sinks can take what they could not take yet: spare those lanes the rest of a pause.

        Callable from every thread.
        """
        ...

    def silent_s(self, peer_id: PeerId) -> float:
        """Seconds since the last byte of that peer came, on any lane; infinite if none has."""
        ...

    def arriving(self, peer_id: PeerId) -> Mapping[bytes, int] | None:
        """How many bytes have come of each payload that is under way from a peer, by header.

        None where that cannot be told: its messages come as wholes, or it has no lane here.
        """
        ...

    def allocate(self, num_bytes: int) -> memoryview:
        """Zeroed memory whose bytes a lane to a peer on the same host need not copy to send."""
        ...

    def links(self) -> Mapping[PeerId, LinkStats]:
        """What is known of the links to other peers, from real traffic."""
        ...

    def line(self) -> LineStats:
        """What is known of the line that links to faraway peers share."""
        ...
