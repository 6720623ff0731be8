"""Lanes to other peers: opened ahead or when needed, and kept from round to round while warm."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.errors import TransportError, ZoonetError
from zoonet.transport import Buffer, Lane, Lanes

MAX_HELD: Final = 65_536  # messages that wait for a lane to open

WORD_BYTES: Final = 128  # a header alone: that a peer waits is nothing to wait for

log = logging.getLogger(__name__)


class Outlets:
    """One lane for each peer that this one sends to. `post` is thread safe.

    `broke` is called, from any thread, when a lane could not be opened or has ended.
    """

    def __init__(self, lanes: Lanes, channel: str, broke: Callable[[PeerId, str], None]) -> None:
        self._lanes = lanes
        self._channel = channel
        self._broke = broke
        self._lock = threading.Lock()
        self._open: dict[PeerId, Lane] = {}
        self._held: dict[PeerId, deque[tuple[bytes, Buffer]]] = {}
        self._ahead: set[PeerId] = set()  # lanes being opened that nobody needs yet
        self._ended: set[Lane] = set()

    def post(self, peer_id: PeerId, header: bytes, payload: Buffer) -> None:
        """Send soon; what is posted before the lane is open waits for it."""
        with self._lock:
            lane = self._open.get(peer_id)
            if lane is None:
                held = self._held.get(peer_id)
                if held is not None and len(held) < MAX_HELD:
                    held.append((header, payload))
                return
        lane.post(header, payload)

    def post_if_idle(self, peer_id: PeerId, header: bytes) -> None:
        """Send a header alone, unless something is on its way to the peer already."""
        with self._lock:
            lane = self._open.get(peer_id)
        if lane is not None and not lane.unsent_bytes:
            lane.post(header, b"")

    def expect(self, peer_id: PeerId) -> bool:
        """Hold what is posted to the peer from now on. Tell whether a lane has to be opened."""
        with self._lock:
            self._ahead.discard(peer_id)
            if peer_id in self._open or peer_id in self._held:
                return False
            self._held[peer_id] = deque()
            return True

    def expect_ahead(self, peer_id: PeerId) -> bool:
        """The same of one to which nothing is sent yet: where only a stream is, no lane is kept."""
        with self._lock:
            if peer_id in self._open or peer_id in self._held:
                return False
            self._held[peer_id] = deque()
            self._ahead.add(peer_id)
            return True

    async def open(self, peer_id: PeerId) -> None:
        """Open the lane that `expect` asked for and send what is held.

        Where that fails or is cancelled, what is held is lost.
        """
        try:
            lane = await self._lane_to(peer_id)
            with self._lock:
                if lane is None:
                    return
                for header, payload in self._held.pop(peer_id, ()):
                    lane.post(header, payload)
                if lane not in self._ended:
                    self._open[peer_id] = lane
                self._ended.discard(lane)
        except TransportError as error:
            log.info("no lane to peer=%s: %s", short(peer_id), error)
            if peer_id not in self._ahead:
                self._broke(peer_id, str(error))
        finally:
            with self._lock:
                self._held.pop(peer_id, None)
                self._ahead.discard(peer_id)

    async def _lane_to(self, peer_id: PeerId) -> Lane | None:
        """A lane; None where it is not needed and only a stream would do."""
        if peer_id in self._ahead:
            lane = await self._lanes.open_ahead(peer_id, self._channel, self._on_end)
            if lane is not None or peer_id in self._ahead:
                return lane
        return await self._lanes.open(peer_id, self._channel, self._on_end)

    def _on_end(self, lane: Lane, error: ZoonetError) -> None:
        with self._lock:
            if self._open.get(lane.peer_id) is lane:
                del self._open[lane.peer_id]
            else:
                self._ended.add(lane)  # before `open` has returned it
        log.info("lane to peer=%s ended: %s", short(lane.peer_id), error)
        self._broke(lane.peer_id, str(error))

    @property
    def unsent_bytes(self) -> int:
        """Of all lanes."""
        with self._lock:
            return sum(lane.unsent_bytes for lane in self._open.values())

    def unserved(self) -> set[PeerId]:
        """To whom something that was posted has not left yet; a header alone does not count."""
        with self._lock:
            held = {peer_id for peer_id, messages in self._held.items() if messages}
            return held | {
                peer_id for peer_id, lane in self._open.items() if lane.unsent_bytes > WORD_BYTES
            }

    def drop(self) -> None:
        """Forget what has not begun to leave, on every lane."""
        with self._lock:
            lanes = list(self._open.values())
        for lane in lanes:
            lane.drop()

    def paths(self) -> dict[PeerId, str]:
        """How the bytes travel to each peer."""
        with self._lock:
            return {peer_id: lane.path for peer_id, lane in self._open.items()}

    async def close(self) -> None:
        """End all lanes."""
        with self._lock:
            lanes = list(self._open.values())
            self._open.clear()
        for lane in lanes:
            await lane.close()
