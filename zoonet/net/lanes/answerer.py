"""Answering those who want to open a lane to this peer."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Final

from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, TransportError
from zoonet.net.lanes.certificates import check_certificate
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.dial import Knock, dial, dialable, in_thread, race
from zoonet.net.lanes.incoming import IncomingLane
from zoonet.net.lanes.live import wait_until_chosen
from zoonet.net.lanes.messages import (
    ASK,
    DIAL_BACK,
    TOKEN_BYTES,
    Ask,
    DialBack,
    Dialling,
    Offer,
    Place,
)
from zoonet.net.lanes.places import is_near
from zoonet.net.lanes.station import STAGGER_S, Station
from zoonet.net.lanes.tokens import Expected
from zoonet.transport import serve_calls
from zoonet.transport.lanes import Sink

MAX_DIALLING_PER_PEER: Final = 8

log = logging.getLogger(__name__)


class Answerer:
    """Makes offers, and dials back those whom nobody can dial, or who cannot dial this peer."""

    def __init__(self, station: Station, sinks: Mapping[str, Sink]) -> None:
        self._station = station
        self._config = station.config
        self._sinks = sinks
        self._num_dialling: Counter[PeerId] = Counter()

    async def serve(self) -> None:
        """Begin to answer."""
        transport = self._station.transport
        await serve_calls(transport, ASK, Ask, self._answer)
        await serve_calls(transport, DIAL_BACK, DialBack, self._dial_back)

    async def _answer(self, peer_id: PeerId, ask: Ask) -> Offer:
        station = self._station
        self._check(peer_id, ask.channel, ask.certificate)
        own, proof = station.credentials(), secrets.token_bytes(TOKEN_BYTES)
        lane = self._incoming_lane(peer_id, ask.channel)
        welcome = partial(station.live.receive, lane, is_chosen=False)
        remote = Expected(peer_id, own, ask.certificate, welcome)
        local = Expected(peer_id, own, ask.certificate, welcome, proof, remote.visits)
        return Offer(
            own.certificate,
            station.book.issue(remote),
            station.places(),
            station.book.issue(local),
            proof,
            station.door.socket_name,
        )

    async def _dial_back(self, peer_id: PeerId, request: DialBack) -> Dialling:
        self._check(peer_id, request.channel, request.certificate)
        if not self._config.use_direct or self._num_dialling[peer_id] >= MAX_DIALLING_PER_PEER:
            raise TransportError("no more connections are dialled now")
        self._num_dialling[peer_id] += 1
        self._station.scope.spawn(self._fetch_lane(peer_id, request), name="dial back")
        return Dialling()

    async def _fetch_lane(self, peer_id: PeerId, request: DialBack) -> None:
        own, config = self._station.credentials(), self._config
        knock = Knock(peer_id, own, request.certificate, request.token)
        try:
            async with asyncio.timeout(2 * config.handshake_timeout_s):
                await self._fetch(knock, request)
        except (TransportError, ProtocolViolation, TimeoutError) as error:
            log.debug("dialled back in vain, peer=%s: %s", short(peer_id), error)
        finally:
            self._num_dialling[peer_id] -= 1
            if not self._num_dialling[peer_id]:
                del self._num_dialling[peer_id]

    async def _fetch(self, knock: Knock, request: DialBack) -> None:
        live, peer_id = self._station.live, knock.peer_id
        routes = await self._station.routes(peer_id)
        places = dialable(request.places, is_near=is_near(routes))
        dials = [
            self._dial_and_wait(number * STAGGER_S, place, knock)
            for number, place in enumerate(places)
        ]
        place, connection = await race(dials, lambda found: found[1].close())
        rtt_s = connection.rtt_s()
        lane = self._incoming_lane(peer_id, request.channel)
        live.receive_in_thread(lane, connection)
        if rtt_s >= self._config.long_rtt_s:
            for _ in range(self._config.num_stripes - 1):
                _, stripe = await self._dial_and_wait(0, place, knock)
                live.receive_in_thread(lane, stripe)

    async def _dial_and_wait(
        self, delay_s: float, place: Place, knock: Knock
    ) -> tuple[Place, Connection]:
        """Dial, and return once the other side has chosen this connection."""
        await asyncio.sleep(delay_s)
        connection = await dial(place, knock, self._config)

        def wait() -> Connection:
            try:
                wait_until_chosen(connection, self._config.handshake_timeout_s)
            except BaseException:  # whatever ends it, the socket is closed
                connection.close()
                raise
            return connection

        try:
            return place, await in_thread(wait, Connection.close)
        except BaseException:  # cancelled, too
            connection.abort()  # so that its thread ends now
            raise

    def _check(self, peer_id: PeerId, channel: str, certificate: bytes) -> None:
        if channel not in self._sinks:
            raise TransportError(f"channel {channel!r} is not served here")
        check_certificate(peer_id, certificate, self._station.clock.now())

    def _incoming_lane(self, peer_id: PeerId, channel: str) -> IncomingLane:
        meter, patience_s = self._station.link(peer_id).meter, self._config.patience_s
        news = self._station.news
        return IncomingLane(peer_id, channel, self._sinks.get, meter, news, patience_s)
