"""What opening and answering lanes share."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from zoonet.clock import Clock
from zoonet.crypto import PeerId, short
from zoonet.errors import TransportError
from zoonet.net.lanes.certificates import Credentials, make_credentials
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.door import Door
from zoonet.net.lanes.incoming import News
from zoonet.net.lanes.line import Line
from zoonet.net.lanes.links import LinkMeter
from zoonet.net.lanes.live import LiveLanes
from zoonet.net.lanes.memory import SharedMemory
from zoonet.net.lanes.messages import Place
from zoonet.net.lanes.places import places_to_tell
from zoonet.net.lanes.tokens import TokenBook
from zoonet.net.scope import Scope
from zoonet.transport import Transport

MAX_KNOWN_LINKS: Final = 4096
STAGGER_S: Final = 0.05  # between the dials of a peer's several addresses

RoutesOf = Callable[[PeerId], Awaitable[tuple[str, ...]]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Link:
    """What is known of the way to one peer."""

    meter: LinkMeter
    has_failed: bool = False  # no better path than a stream was found
    _again_at: float = 0.0  # loop time

    def fails_until(self, after_s: float) -> None:
        """There is no better path; it is worth another look after so many seconds."""
        self.has_failed = True
        self._again_at = asyncio.get_running_loop().time() + after_s

    def is_worth_a_look(self) -> bool:
        """Whether a better path may have appeared since the last look."""
        return self.has_failed and asyncio.get_running_loop().time() >= self._again_at


class Station:
    """The parts of one host's lanes. Used on the event loop."""

    def __init__(
        self, transport: Transport, config: LanesConfig, routes_of: RoutesOf, clock: Clock
    ) -> None:
        self.transport = transport
        self.config = config
        self.clock = clock
        self.scope: Scope
        self.memory = SharedMemory(is_shared=config.use_shm)
        self.book = TokenBook()
        self.door = Door(config, self.book)
        self.live = LiveLanes(config)
        self.news = News()
        self.line = Line(config)
        self.links: OrderedDict[PeerId, Link] = OrderedDict()
        self._routes_of = routes_of
        self._credentials: Credentials | None = None

    def credentials(self) -> Credentials:
        """This peer's certificate and key, which are others every few days."""
        now = self.clock.now()
        if self._credentials is None or now >= self._credentials.renew_at:
            self._credentials = make_credentials(now)
        return self._credentials

    def link(self, peer_id: PeerId) -> Link:
        """What is known of the way to a peer."""
        link = self.links.get(peer_id)
        if link is None:
            link = self.links[peer_id] = Link(LinkMeter(self.line))
        self.links.move_to_end(peer_id)
        if len(self.links) > MAX_KNOWN_LINKS:
            # Strangers who only ask come and go; a peer whose bytes come must not seem silent.
            known = list(self.links)[:-1]
            del self.links[min(known, key=lambda one: self.links[one].meter.ear.heard_s)]
        return link

    def places(self) -> tuple[Place, ...]:
        """Where this peer can be dialled."""
        return places_to_tell(self.door.places, self.config.announce)

    async def routes(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses over which the transport is connected to a peer; empty where unknown."""
        try:
            return await self._routes_of(peer_id)
        except TransportError as error:
            log.debug("routes not known, peer=%s: %s", short(peer_id), error)
            return ()
