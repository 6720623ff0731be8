"""The lanes of a host: shared memory on one machine, TLS connections, else the transport's streams.

Who opens a lane asks first, over an authenticated stream::

    opener                             the other peer
    Ask(certificate, channel)     ->
                                  <-   Offer(certificate, tokens, places, local socket)
    at the local socket: token    ->
                                  <-   proof
    or at any place: token, TLS   ->   which certificate to expect follows from the token
                                  <-   ready
    go                            ->   on the connection that was chosen; then messages

In parallel, after a short head start, the opener asks to be dialled instead (`DialBack`), for the
case that only the other side can dial. Whoever sends the messages says "go", so connections that
were not chosen end unnoticed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from zoonet.clock import Clock, SystemClock
from zoonet.crypto import PeerId
from zoonet.errors import PeerUnreachable
from zoonet.net.lanes.answerer import Answerer
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.links import LinkMeter
from zoonet.net.lanes.metered import MeteredSink
from zoonet.net.lanes.opener import Opening
from zoonet.net.lanes.places import is_relayed
from zoonet.net.lanes.station import RoutesOf, Station
from zoonet.net.scope import Scope
from zoonet.transport import Transport
from zoonet.transport.lanes import Lane, LaneEnded, LineStats, LinkStats, Sink
from zoonet.transport.stream_lanes import StreamLanes


class HostLanes:
    """The Lanes of a host; see `zoonet.transport.lanes.Lanes`.

    `routes_of` returns the addresses over which the transport is connected to a peer. A lane that
    had to take a stream is not moved, but better paths are looked for meanwhile, for later ones.
    `clock` is for certificates, which are also judged by the machine's own.
    """

    def __init__(
        self,
        transport: Transport,
        config: LanesConfig,
        routes_of: RoutesOf,
        clock: Clock | None = None,
    ) -> None:
        self._station = Station(transport, config, routes_of, clock or SystemClock())
        self._streams = StreamLanes(transport)
        self._sinks: dict[str, Sink] = {}
        self._answerer = Answerer(self._station, self._sinks)

    @property
    def peer_id(self) -> PeerId:
        return self._station.transport.peer_id

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Accept lanes while the block runs; every lane ends with it.

        Raises ConfigError where the port for bulk data cannot be had.
        """
        station = self._station
        station.door.open()
        try:
            async with Scope() as scope:
                station.scope = scope
                await self._answerer.serve()
                yield
        finally:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._station.door.close()
        self._station.live.close()

    async def serve(self, channel: str, sink: Sink) -> None:
        self._sinks[channel] = sink
        await self._streams.serve(channel, MeteredSink(sink, self._meter_of))

    def _meter_of(self, peer_id: PeerId) -> LinkMeter:
        return self._station.link(peer_id).meter

    async def unserve(self, channel: str) -> None:
        self._sinks.pop(channel, None)
        await self._streams.unserve(channel)
        self._station.live.end_channel(channel)

    async def open(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane:
        lane = await self.open_ahead(peer_id, channel, on_end)
        return lane or await self._open_stream(peer_id, channel, on_end)

    async def open_ahead(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane | None:
        if peer_id == self.peer_id:
            raise PeerUnreachable("a peer does not open lanes to itself")
        station, link = self._station, self._station.link(peer_id)
        if station.config.use_shm or station.config.use_direct:
            opening = Opening(station, peer_id, channel, on_end)
            if not link.has_failed:
                return await opening.run()
            if link.is_worth_a_look():
                station.scope.spawn(opening.probe(), name="probe")
        return None

    async def _open_stream(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane:
        lane = await self._streams.open(peer_id, channel, on_end)
        if is_relayed(await self._station.routes(peer_id)):
            lane.path = "relayed"
        self._station.link(peer_id).meter.path = lane.path
        return lane

    def ask_again(self) -> None:
        self._station.news.tell()

    def allocate(self, num_bytes: int) -> memoryview:
        return self._station.memory.allocate(num_bytes)

    def silent_s(self, peer_id: PeerId) -> float:
        link = self._station.links.get(peer_id)
        by_lane = link.meter.silent_s() if link is not None else math.inf
        return min(by_lane, self._streams.silent_s(peer_id))

    def arriving(self, peer_id: PeerId) -> Mapping[bytes, int] | None:
        return self._station.live.arriving(peer_id)

    def links(self) -> Mapping[PeerId, LinkStats]:
        meters = {peer_id: link.meter for peer_id, link in self._station.links.items()}
        return {peer_id: meter.stats() for peer_id, meter in meters.items() if meter.path}

    def line(self) -> LineStats:
        return self._station.line.stats()
