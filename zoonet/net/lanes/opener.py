"""Opening a lane: shared memory if the peer is on this machine, else TLS, dialled from any side."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout, PeerUnreachable, ProtocolViolation, TransportError
from zoonet.net.lanes.certificates import check_certificate
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.dial import Knock, dial, dialable, in_thread, knock_locally, race
from zoonet.net.lanes.messages import ASK, DIAL_BACK, Ask, DialBack, Dialling, Offer, Place
from zoonet.net.lanes.outgoing import OutgoingLane
from zoonet.net.lanes.places import direct_hosts, is_near
from zoonet.net.lanes.shm import ShmSender
from zoonet.net.lanes.station import STAGGER_S, Link, Station
from zoonet.net.lanes.tls import TlsSender
from zoonet.net.lanes.tokens import Expected
from zoonet.transport import Refused, call
from zoonet.transport.lanes import LaneEnded, Path

CALL_TIMEOUT_S: Final = 15.0

log = logging.getLogger(__name__)


class Opening:
    """One attempt to open a lane."""

    def __init__(self, station: Station, peer_id: PeerId, channel: str, on_end: LaneEnded) -> None:
        self._station = station
        self._config = station.config
        self._peer_id = peer_id
        self._channel = channel
        self._on_end = on_end
        self._link: Link = station.link(peer_id)
        self._own = station.credentials()
        self._dialled_back: asyncio.Future[Connection]
        self._lane_by_dial_back: OutgoingLane | None = None

    async def run(self) -> OutgoingLane | None:
        """Return a lane, or None where the peer can only be reached over streams.

        Raises PeerUnreachable where it takes no lane of this channel, PeerTimeout where it is
        silent. Safe to cancel.
        """
        offer = await self._ask()
        if offer is None:
            return None
        try:
            lane = await self._by_shm(offer) or await self._by_tls(offer)
        except (TransportError, ProtocolViolation) as error:
            self._link.fails_until(self._config.retry_direct_after_s)
            log.info("no direct lane, peer=%s: %s", short(self._peer_id), error)
            return None
        return lane

    async def probe(self) -> None:
        """See whether a better path than a stream has appeared; the other side opens no lane.

        Safe to cancel.
        """
        self._link.fails_until(self._config.retry_direct_after_s)
        try:
            offer = await self._ask()
            if offer is None:
                return
            found = await self._connect_shm(offer) or (await self._connect_tls(offer))[1]
        except (TransportError, ProtocolViolation) as error:
            log.debug("still no direct lane, peer=%s: %s", short(self._peer_id), error)
            return
        found.close()
        self._link.has_failed = False

    async def _ask(self) -> Offer | None:
        station, peer_id = self._station, self._peer_id
        ask = Ask(self._own.certificate, self._channel)
        try:
            offer = await call(
                station.transport, peer_id, ASK, ask, Offer, timeout_s=CALL_TIMEOUT_S
            )
            check_certificate(peer_id, offer.certificate, station.clock.now())
        except Refused as error:
            raise PeerUnreachable(f"takes no lane: {error}") from error
        except PeerTimeout:
            raise
        except (TransportError, ProtocolViolation) as error:
            log.debug("no offer of a lane, peer=%s: %s", short(peer_id), error)
            return None
        return offer

    def _lane(self, path: Path, rtt_s: float) -> OutgoingLane:
        station, num_stripes = self._station, partial(self._station.line.num_stripes, rtt_s)
        return OutgoingLane(self._peer_id, path, self._on_end, station.live.gone, num_stripes)

    async def _by_shm(self, offer: Offer) -> OutgoingLane | None:
        """A lane over shared memory; None where the peer is on another machine."""
        connection = await self._connect_shm(offer)
        if connection is None:
            return None
        self._link.meter.meets(connection, "shm")
        lane = self._lane("shm", rtt_s=0.0)
        self._station.live.start(
            lane, ShmSender(connection, self._station.memory, self._link.meter)
        )
        return lane

    async def _connect_shm(self, offer: Offer) -> Connection | None:
        if not self._config.use_shm or not offer.socket_name:
            return None

        def connect() -> Connection:
            name, token, proof = offer.socket_name, offer.local_token, offer.proof
            return knock_locally(self._peer_id, name, token, proof, self._config)

        try:
            return await in_thread(connect, Connection.close)
        except (TransportError, ProtocolViolation) as error:
            log.debug("no shared memory, peer=%s: %s", short(self._peer_id), error)
            return None

    async def _by_tls(self, offer: Offer) -> OutgoingLane:
        """A lane over TLS. Raises TransportError or ProtocolViolation."""
        place, connection = await self._connect_tls(offer)
        self._link.meter.meets(connection, "direct")
        line, lane = self._station.line, self._lane("direct", connection.rtt_s())
        is_far, has_room = line.leads_to(connection), line.has_room
        if is_far:
            line.carries(lane)
        self._station.live.start(lane, TlsSender(connection, self._link.meter))
        if place is None:
            self._lane_by_dial_back = lane
        elif is_far and has_room:
            for _ in range(self._config.num_stripes - 1):
                self._station.scope.spawn(self._add_stripe(lane, place, offer), name="stripe")
        return lane

    async def _connect_tls(self, offer: Offer) -> tuple[Place | None, Connection]:
        """A connection, and where it was dialled: None where the other side did."""
        if not self._config.use_direct:
            raise PeerUnreachable("direct connections are switched off")
        attempts = [
            self._dial_after(number * STAGGER_S, place, offer)
            for number, place in enumerate(await self._places_of(offer))
        ]
        if self._station.door.places:
            delay_s = self._config.head_start_s if attempts else 0.0
            attempts.append(self._be_dialled(delay_s, offer.certificate))
        try:
            async with asyncio.timeout(self._config.direct_timeout_s):
                return await race(attempts, lambda found: found[1].close())
        except TimeoutError as error:
            raise PeerUnreachable("neither side reaches the other in time") from error

    async def _places_of(self, offer: Offer) -> list[Place]:
        """Where to dial: first where the transport reaches the peer already, then as it says."""
        routes = await self._station.routes(self._peer_id)
        ports = dict.fromkeys(place.port for place in offer.places)
        reached = [Place(host, port) for host in direct_hosts(routes) for port in ports]
        return dialable([*reached, *offer.places], is_near=is_near(routes))

    def _knock(self, offer: Offer) -> Knock:
        return Knock(self._peer_id, self._own, offer.certificate, offer.token)

    async def _dial_after(
        self, delay_s: float, place: Place, offer: Offer
    ) -> tuple[Place | None, Connection]:
        await asyncio.sleep(delay_s)
        return place, await dial(place, self._knock(offer), self._config)

    async def _add_stripe(self, lane: OutgoingLane, place: Place, offer: Offer) -> None:
        try:
            connection = await dial(place, self._knock(offer), self._config)
        except (TransportError, ProtocolViolation) as error:
            log.debug("one connection less, peer=%s: %s", short(self._peer_id), error)
            return
        self._station.live.extend(lane, TlsSender(connection, self._link.meter))

    async def _be_dialled(
        self, delay_s: float, certificate: bytes
    ) -> tuple[Place | None, Connection]:
        """Ask the other side to dial, and wait until it comes."""
        await asyncio.sleep(delay_s)
        station, loop = self._station, asyncio.get_running_loop()
        self._dialled_back = loop.create_future()

        def welcome(connection: Connection) -> None:
            try:
                loop.call_soon_threadsafe(self._arrived, connection)
            except RuntimeError:  # the loop has closed
                connection.close()

        token = station.book.issue(Expected(self._peer_id, self._own, certificate, welcome))
        request = DialBack(self._own.certificate, self._channel, token, station.places())
        try:
            await call(
                station.transport,
                self._peer_id,
                DIAL_BACK,
                request,
                Dialling,
                timeout_s=CALL_TIMEOUT_S,
            )
            return None, await self._dialled_back
        except BaseException:  # cancelled, too: nobody waits for that call any more
            station.book.revoke(token)
            if self._dialled_back.cancel() is False and not self._dialled_back.cancelled():
                self._dialled_back.result().close()
            raise

    def _arrived(self, connection: Connection) -> None:
        """The other side has dialled, and shown what it should."""
        lane = self._lane_by_dial_back
        if not self._dialled_back.done():
            self._dialled_back.set_result(connection)
        elif lane is not None and lane.num_connections < self._config.num_stripes:
            self._station.live.extend(lane, TlsSender(connection, self._link.meter))
        else:
            connection.close()
