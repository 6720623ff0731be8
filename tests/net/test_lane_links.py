"""What traffic tells of a link."""

from __future__ import annotations

import socket

import pytest

from tests.contracts.networks import identity_of
from tests.net.lane_peers import STREAMS, routes_nearby
from zoonet.averaging.links import LinkBook
from zoonet.clock import SystemClock
from zoonet.crypto import PeerId
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.links import GAP_S, SAMPLE_BYTES, LinkMeter, Rate, smoothed
from zoonet.net.lanes.station import MAX_KNOWN_LINKS, Station
from zoonet.testing import MemorySwarm
from zoonet.transport.lanes import LineStats


class Stopwatch:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_rate_is_of_the_time_that_something_was_under_way() -> None:
    now = Stopwatch()
    rate = Rate(now=now)
    for _ in range(2):
        rate.begin()
        now.time += 1
        rate.end(SAMPLE_BYTES // 2)
        now.time += 1000
    assert rate.bytes_per_s == SAMPLE_BYTES / 2


def test_connections_that_are_busy_together_share_their_time() -> None:
    now = Stopwatch()
    rate = Rate(now=now)
    rate.begin()
    rate.begin()
    now.time += 2
    rate.end(SAMPLE_BYTES // 2)
    rate.end(SAMPLE_BYTES // 2)
    assert rate.bytes_per_s == SAMPLE_BYTES / 2


def test_a_short_pause_between_arrivals_belongs_to_the_time() -> None:
    now = Stopwatch()
    rate = Rate(GAP_S, now)
    for _ in range(100):
        rate.begin()
        rate.end(SAMPLE_BYTES // 10)  # all of it was in a buffer already
        now.time += GAP_S
    assert rate.bytes_per_s == pytest.approx(SAMPLE_BYTES / 10 / GAP_S, rel=0.2)


def test_a_burst_alone_says_nothing_of_a_link() -> None:
    now = Stopwatch()
    rate = Rate(GAP_S, now)
    rate.begin()
    now.time += 0.001
    rate.end(SAMPLE_BYTES)
    assert rate.bytes_per_s == 0


def test_better_samples_count_more_than_worse_ones() -> None:
    assert smoothed(0, 10) == 10
    assert smoothed(10, 20) - 10 > 10 - smoothed(10, 0)


def test_nothing_is_known_at_first() -> None:
    stats = LinkMeter().stats()
    assert (stats.rtt_s, stats.up_bytes_per_s, stats.down_bytes_per_s) == (0, 0, 0)


def test_who_shares_memory_is_near_at_both_ends_however_busy_the_machine_is() -> None:
    """There is no round trip to measure, and a greeting takes as long as a scheduler likes."""
    peer, ends, meters = (
        identity_of("other").peer_id,
        socket.socketpair(),
        (LinkMeter(), LinkMeter()),
    )
    dialled, accepted = (Connection(end, peer, stall_timeout_s=10.0) for end in ends)
    meters[0].rtt_s = meters[1].rtt_s = 0.5  # whatever an earlier path has shown
    meters[0].meets(dialled, "shm")
    meters[1].listens(accepted, "shm")
    for meter in meters:
        book = LinkBook()
        book.observe({peer: meter.stats()}, LineStats(0, 0))
        assert book.near() == (peer,)
    dialled.close()
    accepted.close()


def test_strangers_who_only_ask_do_not_push_out_a_peer_whose_bytes_come() -> None:
    """It would have seemed silent to those who wait for it, and be left out of the round."""
    swarm = MemorySwarm()
    transport, _ = swarm.peer(identity_of("victim"))
    station = Station(transport, STREAMS, routes_nearby, SystemClock())
    honest = identity_of("honest").peer_id
    station.link(honest).meter.ear.heard_s = 1.0
    for number in range(MAX_KNOWN_LINKS + 10):
        station.link(PeerId(f"stranger{number}"))
    assert station.links[honest].meter.ear.heard_s == 1.0
    assert len(station.links) == MAX_KNOWN_LINKS
    assert PeerId(f"stranger{MAX_KNOWN_LINKS + 9}") in station.links
