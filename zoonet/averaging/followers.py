"""Those who attend a coordinator's round: what they say of themselves, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import msgpack

from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import FromCoordinator, Ready
from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout
from zoonet.transport import Stream

MAX_UNSENT: Final = 64  # messages that wait for a follower to read; then it is lost


class Follower:
    """A peer that attends. What it is told waits in a queue, so that nobody waits for it."""

    def __init__(self, stream: Stream, ready: Ready) -> None:
        self.stream = stream
        self.ready = ready
        self._unsent: asyncio.Queue[FromCoordinator | None] = asyncio.Queue(MAX_UNSENT)

    @property
    def links(self) -> PeerLinks:
        """What it says of its links."""
        return PeerLinks(
            near=tuple(map(PeerId, self.ready.near)),
            up_bytes_per_s=self.ready.up_bytes_per_s,
            down_bytes_per_s=self.ready.down_bytes_per_s,
            lan_bytes_per_s=self.ready.lan_bytes_per_s,
        )

    def tell(self, message: FromCoordinator) -> bool:
        """Send soon. False where it has not read for too long."""
        try:
            self._unsent.put_nowait(message)
        except asyncio.QueueFull:
            return False
        return True

    def dismiss(self) -> None:
        """End the stream once everything is sent, or at once where that would take too long."""
        if self._unsent.full():
            self._unsent.get_nowait()
        self._unsent.put_nowait(None)

    async def send(self, silence_s: float) -> None:
        """Send what it is told until it is dismissed. Raises TransportError."""
        while (message := await self._unsent.get()) is not None:
            try:
                async with asyncio.timeout(silence_s):
                    await self.stream.send(msgpack.encode(message))
            except TimeoutError as error:
                raise PeerTimeout(f"peer={short(self.stream.peer_id)} does not read") from error


class Followers(Mapping[PeerId, Follower]):
    """Everyone who attends, each over its newest stream, and when each was heard last."""

    def __init__(self) -> None:
        self._followers: dict[PeerId, Follower] = {}
        self._heard: dict[PeerId, float] = {}

    def __getitem__(self, peer: PeerId) -> Follower:
        return self._followers[peer]

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._followers)

    def __len__(self) -> int:
        return len(self._followers)

    def add(self, follower: Follower, now: float) -> None:
        """Somebody comes; where it was there already its former stream ends."""
        peer = follower.stream.peer_id
        self.drop(peer)
        self._followers[peer] = follower
        self._heard[peer] = now

    def drop(self, peer: PeerId) -> None:
        """Somebody goes, or is sent away."""
        self._heard.pop(peer, None)
        follower = self._followers.pop(peer, None)
        if follower is not None:
            follower.dismiss()

    def dismiss_all(self) -> None:
        """End all streams; who follows is forgotten when its own one has ended."""
        for follower in self._followers.values():
            follower.dismiss()

    def heard(self, peer: PeerId, now: float) -> None:
        """A peer has said something."""
        if peer in self._followers:
            self._heard[peer] = now

    def silences(self, now: float) -> dict[PeerId, float]:
        """For how many seconds each of them has said nothing."""
        return {peer: now - heard for peer, heard in self._heard.items()}
