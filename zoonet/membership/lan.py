"""Peers on the same local network, found without anyone's address.

A beacon is one multicast datagram: a magic and the sender's own signed `PeerRecord`. Whoever
hears a new peer answers with a beacon of its own, so a newcomer knows its neighbours at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from zoonet.clock import Clock, SystemClock
from zoonet.crypto import PeerId, short
from zoonet.errors import ConfigError, InvalidRecord
from zoonet.records import PeerRecord, Signed, verify

MAGIC: Final = b"zoonet-lan/1\x00"
MAX_BEACON_BYTES: Final = 8 * 1024 + len(MAGIC)
MAX_PEERS: Final = 256
MAX_CHECKED_PER_S: Final = 100  # signatures checked; a flood beyond that is dropped unread
FIRST_INTERVAL_S: Final = 0.5
ANSWER_INTERVAL_S: Final = 1.0
LAN_SEARCH_S: Final = 3.0  # how long a newcomer listens for neighbours
SEARCH_GRACE_S: Final = 0.5  # for the others, once one has answered

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanConfig:
    """Where beacons are sent. Raises ConfigError for what cannot be."""

    is_enabled: bool = True
    group: str = "239.255.90.79"  # within the administratively scoped block: not routed
    port: int = 47809
    interface: str = ""  # IPv4 address of the interface; empty: the default route's
    interval_s: float = 30.0  # between beacons, after a quick start

    def __post_init__(self) -> None:
        try:
            first = socket.inet_aton(self.group)[0]
            socket.inet_aton(self.interface or "0.0.0.0")
        except OSError as error:
            raise ConfigError("LAN discovery needs IPv4 addresses in numbers") from error
        if not 224 <= first <= 239:
            raise ConfigError(f"{self.group} is not a multicast group (224.0.0.0-239.255.255.255)")
        if not 0 < self.port < 65536 or self.interval_s <= 0:
            raise ConfigError("LAN discovery needs a port of 1-65535 and an interval above 0")


class Lan(asyncio.DatagramProtocol):
    """Hears and sends beacons while it is open."""

    def __init__(self, peer_id: PeerId, config: LanConfig, clock: Clock) -> None:
        self._peer_id = peer_id
        self._config = config
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._socket: asyncio.DatagramTransport | None = None
        self._beacon = b""
        self._timer: asyncio.TimerHandle | None = None
        self._answered_at = -ANSWER_INTERVAL_S
        self._second = 0
        self._num_checked = 0
        self._peers: dict[PeerId, Signed[PeerRecord]] = {}
        self._has_news = asyncio.Event()
        self.num_refused = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, peer_id: PeerId, config: LanConfig | None = None, clock: Clock | None = None
    ) -> AsyncIterator[Self]:
        """Listen while the block runs. A machine without multicast hears nobody; no error."""
        config = config or LanConfig()
        lan = cls(peer_id, config, clock or SystemClock())
        if config.is_enabled:
            await lan._listen()
        try:
            yield lan
        finally:
            lan._close()

    async def _listen(self) -> None:
        try:
            inbox = _multicast_socket(self._config)
        except OSError as error:
            log.warning("LAN discovery is off: %s", error)
            return
        await self._loop.create_datagram_endpoint(lambda: self, sock=inbox)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def peers(self) -> list[Signed[PeerRecord]]:
        """Neighbours heard of whose records still hold, in the order of their ids."""
        now = self._clock.now()
        return [record for _, record in sorted(self._peers.items()) if record.expires_at > now]

    def present(self, record: Signed[PeerRecord]) -> None:
        """Send this record from now on, at once and then at growing intervals."""
        if len(record.raw) + len(MAGIC) > MAX_BEACON_BYTES:
            raise ValueError(f"a beacon of {len(record.raw)} bytes")
        is_first = not self._beacon
        self._beacon = MAGIC + record.raw
        if is_first:
            self._repeat(FIRST_INTERVAL_S)

    async def search(self, timeout_s: float) -> list[Signed[PeerRecord]]:
        """Wait for neighbours: until shortly after the first one answers, or `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.peers():
                    self._has_news.clear()
                    await self._has_news.wait()
                await asyncio.sleep(SEARCH_GRACE_S)
        return self.peers()

    def _repeat(self, interval_s: float) -> None:
        self._send()
        later_s = min(interval_s * 2, self._config.interval_s)
        self._timer = self._loop.call_later(interval_s, self._repeat, later_s)

    def _send(self) -> None:
        if self._socket is not None and self._beacon:
            self._socket.sendto(self._beacon, (self._config.group, self._config.port))

    # asyncio's DatagramProtocol.

    def connection_made(self, transport: Any) -> None:
        self._socket = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not data > MAGIC or len(data) > MAX_BEACON_BYTES or not data.startswith(MAGIC):
            self.num_refused += 1
            return
        if data == self._beacon or not self._may_check():
            return
        try:
            record = verify(data[len(MAGIC) :], now=self._clock.now()).expect(PeerRecord)
        except InvalidRecord as error:
            self.num_refused += 1
            log.debug("refused a beacon from %s: %s", addr[0], error)
            return
        if record.author != self._peer_id:
            self._meet(record)

    def error_received(self, exc: Exception) -> None:
        log.debug("a beacon could not be sent: %s", exc)

    def _may_check(self) -> bool:
        second = int(self._loop.time())
        if second != self._second:
            self._second, self._num_checked = second, 0
        self._num_checked += 1
        return self._num_checked <= MAX_CHECKED_PER_S

    def _meet(self, record: Signed[PeerRecord]) -> None:
        known = self._peers.get(record.author)
        if known is not None and not record.is_newer_than(known):
            return
        if known is None:
            log.info("met on the LAN peer=%s", short(record.author))
            self._answer()
        self._peers[record.author] = record
        if len(self._peers) > MAX_PEERS:
            first = min(self._peers.values(), key=lambda kept: kept.expires_at)
            del self._peers[first.author]
        self._has_news.set()

    def _answer(self) -> None:
        now = self._loop.time()
        if now - self._answered_at >= ANSWER_INTERVAL_S:
            self._answered_at = now
            self._send()


def _multicast_socket(config: LanConfig) -> socket.socket:
    interface = socket.inet_aton(config.interface or "0.0.0.0")
    inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        inbox.setblocking(False)
        inbox.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            inbox.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        inbox.bind((config.group, config.port))
        membership = socket.inet_aton(config.group) + interface
        inbox.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        inbox.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        inbox.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        inbox.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError:
        inbox.close()
        raise
    return inbox
