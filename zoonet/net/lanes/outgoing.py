"""The sending end of a lane: a queue, and a thread for each of its connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from zoonet.crypto import PeerId, short
from zoonet.errors import StreamClosed, ZoonetError
from zoonet.net.lanes.config import MAX_STRIPES
from zoonet.net.lanes.connection import NOT_SENT_BYTES, Connection, Doorbell
from zoonet.transport.lanes import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, LaneEnded, Path
from zoonet.transport.streams import Buffer

CLOSE_S: Final = 2.0  # for what was posted to leave after a close
LOOK_S: Final = 0.1  # at the latest, a connection that does not send looks whether it should

log = logging.getLogger(__name__)


class SendingPipe(Protocol):
    """A connection that carries messages away. One thread uses it; errors are ZoonetErrors."""

    connection: Connection

    @property
    def bytes_per_s(self) -> float:
        """How fast it has been lately; 0 where that is not known."""
        ...

    def send(self, header: bytes, payload: memoryview) -> int:
        """Send a message. Returns how many payload bytes, of this and former ones, have left."""
        ...

    def wait(self, doorbell: Doorbell, timeout_s: float | None = None) -> int:
        """Wait until rung. Returns how many bytes left meanwhile; raises where the lane broke."""
        ...

    def flush(self) -> int:
        """Wait until everything has left, and return how many bytes that was."""
        ...

    def close(self) -> None:
        """Let go of the connection, from the thread that used it."""
        ...


@dataclass(slots=True, eq=False)
class _Hand:
    """One connection of a lane, and what its thread does."""

    pipe: SendingPipe
    bell: Doorbell
    rests_until: float = 0.0  # monotonic: until then it leaves what waits to the others


class OutgoingLane:
    """A `Lane` over one or several connections that share a queue.

    Each takes the next message when it has sent the last one, so that faster ones carry more. The
    last messages are left to the fast ones: a slow connection does not take what all faster
    ones together would have sent before it is done. No more than the first `num_stripes()` send,
    so that lanes that share a line do not crowd it.
    """

    def __init__(
        self,
        peer_id: PeerId,
        path: Path,
        on_end: LaneEnded,
        on_gone: Callable[[OutgoingLane], None],
        num_stripes: Callable[[], int] = lambda: MAX_STRIPES,
    ) -> None:
        self.path = path
        self._peer_id = peer_id
        self._on_end = on_end
        self._on_gone = on_gone
        self._num_stripes = num_stripes
        self._lock = threading.Lock()
        self._queue: deque[tuple[bytes, memoryview]] = deque()
        self._unsent_bytes = 0
        self._hands: list[_Hand] = []
        self._idle: list[_Hand] = []
        self._is_closing = False  # by ourselves, or because it broke
        self._is_broken = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    @property
    def num_connections(self) -> int:
        """Over how many connections it sends now."""
        return len(self._hands)

    def add(self, pipe: SendingPipe) -> None:
        """Send over this connection too. A lane that has ended closes it at once."""
        with self._lock:
            if not self._is_closing:
                hand = _Hand(pipe, Doorbell())
                self._hands.append(hand)
                threading.Thread(
                    target=self._run, args=(hand,), name="lane-out", daemon=True
                ).start()
                return
        pipe.close()

    def post(self, header: bytes, payload: Buffer) -> None:
        view = memoryview(payload)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if len(header) > MAX_HEADER_BYTES or len(view) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a message of {len(header)} + {len(view)} bytes is too large")
        with self._lock:
            if self._is_closing:
                return
            self._queue.append((header, view))
            self._unsent_bytes += len(view)
            if self._idle:
                sending = self._sending()
                best = max(self._idle, key=lambda hand: (hand in sending, hand.pipe.bytes_per_s))
                self._idle.remove(best)
                best.bell.ring()

    def drop(self) -> None:
        with self._lock:
            self._unsent_bytes -= sum(len(payload) for _, payload in self._queue)
            self._queue.clear()

    async def close(self) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._is_closing = True
            self._ring_all()
            if not self._hands:
                return
            self._waiting.append((loop, done))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await done.wait()
                return
        self.abort()
        await done.wait()

    def abort(self) -> None:
        """End it at once, without a word to its owner."""
        with self._lock:
            self._break()

    def _break(self) -> None:
        self._is_closing = self._is_broken = True
        self._queue.clear()
        self._unsent_bytes = 0  # nothing of it will leave
        self._ring_all()
        for hand in self._hands:
            hand.pipe.connection.abort()

    def _ring_all(self) -> None:
        self._ring(self._hands)

    def _ring(self, hands: list[_Hand]) -> None:
        """Wake those that are idle: they may not have been meant to send when they last looked."""
        for hand in hands:
            if hand in self._idle:
                self._idle.remove(hand)
                hand.bell.ring()

    def _run(self, hand: _Hand) -> None:
        error: ZoonetError | None = None
        try:
            self._send_all(hand)
        except ZoonetError as failure:
            error = failure
        except Exception as failure:
            # The boundary of a thread: a bug ends its own lane, loudly.
            log.exception("a lane to peer=%s failed", short(self._peer_id))
            error = StreamClosed(f"peer={short(self._peer_id)} lane failed: {failure!r}")
        self._leave(hand, error)

    def _send_all(self, hand: _Hand) -> None:
        while True:
            with self._lock:
                rest_s = self._rest_s(hand)
                message = self._queue.popleft() if self._queue and not rest_s else None
                is_done = self._is_closing and not self._queue
                if message is None and not is_done:
                    self._idle.append(hand)
            if message is not None:
                self._left(hand.pipe.send(*message))
            elif is_done:
                self._left(hand.pipe.flush())
                return
            else:
                self._left(self._sleep(hand, rest_s or None))

    def _sending(self) -> list[_Hand]:
        """Those that may send now. The same ones each time, so that these stay warm."""
        return self._hands if len(self._hands) < 2 else self._hands[: self._num_stripes()]

    def _rest_s(self, hand: _Hand) -> float:
        """How long a connection leaves what waits to faster ones; 0 where it takes the next one.

        Once the others have had the time that they seemed to need, it helps whatever they do.
        """
        if not self._queue:
            hand.rests_until = 0.0
            return 0.0
        sending = self._sending()
        if hand not in sending:
            self._ring(sending)
            return LOOK_S
        own = hand.pipe.bytes_per_s
        # slower ones rest, too
        better = [other for other in sending if other.pipe.bytes_per_s > own]
        faster = [other.pipe.bytes_per_s for other in better]
        if not own or not faster:
            hand.rests_until = 0.0
            return 0.0
        now = time.monotonic()
        others_s = (self._unsent_bytes + len(faster) * NOT_SENT_BYTES) / sum(faster)
        if others_s > (len(self._queue[0][1]) + NOT_SENT_BYTES) / own:
            hand.rests_until = 0.0  # more has been posted meanwhile
        elif not hand.rests_until:
            hand.rests_until = now + others_s
        if now < hand.rests_until:
            self._ring(better)
            return min(LOOK_S, hand.rests_until - now)  # the others may have to stop meanwhile
        hand.rests_until = 0.0
        return 0.0

    def _sleep(self, hand: _Hand, timeout_s: float | None) -> int:
        try:
            return hand.pipe.wait(hand.bell, timeout_s)
        finally:
            with self._lock:
                if hand in self._idle:
                    self._idle.remove(hand)

    def _left(self, num_bytes: int) -> None:
        if num_bytes:
            with self._lock:
                if not self._is_broken:
                    self._unsent_bytes -= num_bytes

    def _leave(self, hand: _Hand, error: ZoonetError | None) -> None:
        """The thread of a connection ends; where it broke, the lane ends with it."""
        with self._lock:
            tells = error is not None and not self._is_closing
            self._is_closing = True
            if error is not None:
                self._break()
            self._ring_all()
        hand.pipe.close()
        with self._lock:
            self._hands.remove(hand)
            hand.bell.close()
            is_last = not self._hands
            waiting, self._waiting = (self._waiting, []) if is_last else ([], self._waiting)
        if is_last:
            self._on_gone(self)
        if tells and error is not None:
            log.debug("lane to peer=%s ended: %s", short(self._peer_id), error)
            self._on_end(self, error)
        for loop, done in waiting:
            with contextlib.suppress(RuntimeError):  # a loop that has closed
                loop.call_soon_threadsafe(done.set)
