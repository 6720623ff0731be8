"""Who is there: our own heartbeat, and a bounded view of everyone else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import ConfigError, TransportError
from zoonet.membership.gossip import MemberRecord, Registry
from zoonet.records import (
    PEERS_TOPIC,
    PeerRecord,
    RecordStore,
    Signed,
    all_peers_keys,
    sign,
)

LEAVING_S: Final = 5.0  # how long a goodbye stays readable

Describe = Callable[[], Awaitable[PeerRecord]]
PeerListener = Callable[[Signed[PeerRecord]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryConfig:
    """How often a peer says that it is there. Raises ConfigError for what cannot work."""

    heartbeat_s: float = 20.0  # between two announcements of our record
    lifetime_s: float = 75.0  # of our record: a peer that died is forgotten after this long
    refresh_s: float = 30.0  # between two readings of everyone's records
    max_peers: int = 10_000  # in the view; those whose records end first go first
    # The same where a registry has told everyone: the record store is a newcomer's way in only.
    slow_heartbeat_s: float = 240.0
    slow_lifetime_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_s < self.lifetime_s <= PeerRecord.MAX_LIFETIME_S:
            raise ConfigError(
                "a heartbeat must be shorter than the record's lifetime, which is at most "
                f"{PeerRecord.MAX_LIFETIME_S:.0f} s"
            )
        if not 0 < self.slow_heartbeat_s < self.slow_lifetime_s <= PeerRecord.MAX_LIFETIME_S:
            raise ConfigError("a slow heartbeat must be shorter than its record's lifetime")
        if self.refresh_s <= 0 or self.max_peers < 1:
            raise ConfigError("refresh_s and max_peers must be above 0")


class Directory:
    """Publishes our `PeerRecord` as a heartbeat and knows the other peers'.

    `describe` tells what our record says at that moment; without it the directory only watches.
    `on_peer` is called with every new or renewed record of another peer. With a `registry` whose
    table is complete the others are read from there, and the record store is used sparingly.
    """

    def __init__(
        self,
        identity: Identity,
        records: RecordStore,
        clock: Clock,
        *,
        describe: Describe | None = None,
        on_peer: PeerListener | None = None,
        registry: Registry | None = None,
        config: DirectoryConfig | None = None,
    ) -> None:
        self._identity = identity
        self._records = records
        self._clock = clock
        self._describe = describe
        self._on_peer = on_peer
        self._registry = registry
        self._config = config or DirectoryConfig()
        self._view: dict[PeerId, Signed[PeerRecord]] = {}
        self._sequence = 0
        self._is_due = asyncio.Event()

    async def run(self) -> None:
        """Announce, listen and refresh until cancelled. Says goodbye on the way out.

        The network's failures are waited out; other exceptions come as an ExceptionGroup.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="peers: listen")
                tasks.create_task(self._refresh(), name="peers: refresh")
                if self._describe is not None:
                    tasks.create_task(self._beat(), name="peers: heartbeat")
        finally:
            if self._describe is not None and self._sequence:
                with contextlib.suppress(TransportError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        await self._announce(LEAVING_S)

    def peers(self) -> list[Signed[PeerRecord]]:
        """Records of the other peers that still hold, in the order of their ids."""
        now = self._clock.now()
        heard = {author: r for author, r in self._view.items() if r.expires_at > now}
        if self._registry is not None and self._registry.is_complete:
            heard = {author: r for author, r in heard.items() if self._is_news(r)}
            heard |= {record.author: record for record in self._registry.peers()}
        return [record for _, record in sorted(heard.items())]

    def _is_news(self, record: Signed[PeerRecord]) -> bool:
        """Whether a heartbeat tells of a peer that the registry does not list and has not lost."""
        assert self._registry is not None
        is_heartbeat = not isinstance(record.body, MemberRecord)
        return is_heartbeat and not self._registry.is_known_gone(record.author)

    def beat_now(self) -> None:
        """Announce again soon: what `describe` tells has changed."""
        self._is_due.set()

    async def refresh(self) -> list[Signed[PeerRecord]]:
        """Read everyone's records now. Raises TransportError."""
        if self._registry is not None and self._registry.is_complete:
            for record in self._registry.peers():
                self.add(record)
            return self.peers()
        shelves = await asyncio.gather(
            *(self._records.fetch(key, PeerRecord) for key in all_peers_keys())
        )
        for shelf in shelves:
            for record in shelf:
                self.add(record)
        return self.peers()

    def add(self, record: Signed[PeerRecord]) -> None:
        """Take a verified record into the view, from wherever it came."""
        if record.author == self._identity.peer_id or record.expires_at <= self._clock.now():
            return
        known = self._view.get(record.author)
        if known is not None and not record.is_newer_than(known):
            return
        if known is None:
            log.info("met peer=%s roles=%s", short(record.author), ",".join(record.body.roles))
        self._view[record.author] = record
        if len(self._view) > self._config.max_peers:
            first = min(self._view.values(), key=lambda kept: kept.expires_at)
            del self._view[first.author]
        if self._on_peer is not None:
            self._on_peer(record)

    @property
    def _is_slow(self) -> bool:
        """Whether the registry tells everyone that we are here."""
        return self._registry is not None and self._registry.is_member

    async def _announce(self, lifetime_s: float) -> Signed[PeerRecord]:
        assert self._describe is not None
        body = await self._describe()
        now = self._clock.now()
        # Time as the sequence: higher than in any earlier run of this peer.
        self._sequence = max(self._sequence + 1, int(now * 1000))
        record = sign(self._identity, body, sequence=self._sequence, expires_at=now + lifetime_s)
        if not self._is_slow:
            await self._records.announce(PEERS_TOPIC, record)
        await self._records.publish(record)
        return record

    async def _beat(self) -> None:
        while True:
            self._is_due.clear()
            try:
                config = self._config
                await self._announce(config.slow_lifetime_s if self._is_slow else config.lifetime_s)
            except TransportError as error:
                log.debug("heartbeat failed, next time: %s", error)
            with contextlib.suppress(TimeoutError):
                pause_s = config.slow_heartbeat_s if self._is_slow else config.heartbeat_s
                async with asyncio.timeout(pause_s):
                    await self._is_due.wait()

    async def _refresh(self) -> None:
        while True:
            try:
                await self.refresh()
            except TransportError as error:
                log.debug("cannot read the peers' records, next time: %s", error)
            self._forget_the_dead()
            await asyncio.sleep(self._config.refresh_s)

    async def _listen(self) -> None:
        async with self._records.listen(PEERS_TOPIC) as announcements:
            async for record in announcements:
                if isinstance(record.body, PeerRecord):
                    self.add(record)

    def _forget_the_dead(self) -> None:
        now = self._clock.now()
        self._view = {
            peer_id: record for peer_id, record in self._view.items() if record.expires_at > now
        }
