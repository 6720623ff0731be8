"""A sink that also measures: for streams, whose lanes have no meter of their own."""

from __future__ import annotations

from collections.abc import Callable

from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.net.lanes.links import LinkMeter
from zoonet.transport.lanes import Sink


class MeteredSink:
    """Passes everything on to a sink. Used on the event loop alone."""

    def __init__(self, sink: Sink, meter_of: Callable[[PeerId], LinkMeter]) -> None:
        self._sink = sink
        self._meter_of = meter_of
        self._under_way: dict[tuple[PeerId, bytes], int] = {}

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview | None:
        target = self._sink.admit(peer_id, header, num_bytes)
        if target is not None and (peer_id, header) not in self._under_way:
            self._under_way[peer_id, header] = num_bytes
            self._meter_of(peer_id).received.begin()
        return target

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        num_bytes = self._under_way.pop((peer_id, header), None)
        if num_bytes is not None:
            meter = self._meter_of(peer_id)
            meter.received.end(num_bytes)
            meter.path = meter.path or "stream"
        self._sink.arrived(peer_id, header)

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        for key in [key for key in self._under_way if key[0] == peer_id]:
            del self._under_way[key]
            self._meter_of(peer_id).received.end(0)
        self._sink.ended(peer_id, error)
