"""A host has one line to the rest of the world: how fast it is, and how its lanes share it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

import pytest

from tests.contracts.networks import identity_of
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import SO_BUF_LOCK, SO_MAX_PACING_RATE, Connection, tune
from zoonet.net.lanes.line import (
    LEAST_WINDOW_BYTES,
    LOOK_S,
    NUM_SAMPLES,
    RECORD_BYTES,
    SAMPLE_S,
    Backlog,
    Line,
    num_stripes,
    window_bytes,
)
from zoonet.net.lanes.links import KernelProbe, LinkMeter

PEER = identity_of("right").peer_id
ALL_ARE_FAR = LanesConfig(long_rtt_s=0.0)
LINE_BYTES_PER_S = 2.5e6


class Play:
    """A line whose kernel says what the test wants."""

    def __init__(self, *names: str) -> None:
        self.time = 100.0
        self.says = {name: Backlog(0, 0) for name in names}
        self.line = Line(ALL_ARE_FAR, lambda: self.time, self.says.get)  # type: ignore[arg-type]
        for name in names:
            self.line.begin(name)  # type: ignore[arg-type]
        self.line.look()

    def pass_by(self, seconds: float, sent_bytes: dict[str, float], *, is_waiting: bool) -> None:
        """So much leaves over each connection, and there is more of it, or not."""
        self.time += seconds
        for name, num_bytes in sent_bytes.items():
            acked_bytes = self.says[name].acked_bytes + int(num_bytes)
            self.says[name] = Backlog(acked_bytes, 100_000 * is_waiting)
        self.line.look()

    @property
    def up(self) -> float:
        return self.line.stats().up_bytes_per_s


def test_links_that_take_turns_do_not_add_up_to_more_than_their_line() -> None:
    play, step_s = Play("one", "other"), 4 * LOOK_S
    for number in range(40):
        speaker = ("one", "other")[number // 4 % 2]
        play.pass_by(step_s, {speaker: LINE_BYTES_PER_S * step_s}, is_waiting=True)
    assert play.up == pytest.approx(LINE_BYTES_PER_S, rel=0.01)


def test_links_that_share_a_line_add_up_to_it() -> None:
    play = Play("one", "other")
    for _ in range(100):
        part = LINE_BYTES_PER_S * LOOK_S
        play.pass_by(1.01 * LOOK_S, {"one": 0.3 * part, "other": 0.7 * part}, is_waiting=True)
    assert play.up == pytest.approx(LINE_BYTES_PER_S, rel=0.02)


def test_time_in_which_nothing_waited_is_no_time_of_the_line() -> None:
    play = Play("one")
    for number in range(200):
        is_waiting = bool(number // 4 % 2)
        sent_bytes = LINE_BYTES_PER_S * LOOK_S if is_waiting else 1000
        play.pass_by(1.01 * LOOK_S, {"one": sent_bytes}, is_waiting=is_waiting)
    assert play.up == pytest.approx(LINE_BYTES_PER_S, rel=0.02)


def test_what_lies_between_two_rounds_is_no_time_of_the_line() -> None:
    play = Play("one")
    for _ in range(50):
        for _ in range(10):
            play.pass_by(2 * LOOK_S, {"one": LINE_BYTES_PER_S * 2 * LOOK_S}, is_waiting=True)
        play.pass_by(60.0, {"one": 1000}, is_waiting=True)  # a new round has begun meanwhile
    assert play.up == pytest.approx(LINE_BYTES_PER_S, rel=0.01)


def test_a_line_that_becomes_slower_is_known_to_be_after_some_samples() -> None:
    play = Play("one")
    for rate in (LINE_BYTES_PER_S, LINE_BYTES_PER_S / 4):
        for _ in range(2 * NUM_SAMPLES):
            play.pass_by(SAMPLE_S, {"one": rate * SAMPLE_S}, is_waiting=True)
        assert play.up == pytest.approx(rate, rel=0.01)


def test_a_line_that_mostly_waits_for_slower_ones_is_known_by_its_better_moments() -> None:
    play = Play("one")
    for number in range(4 * NUM_SAMPLES):
        rate = LINE_BYTES_PER_S if number % 3 == 0 else LINE_BYTES_PER_S / 5
        play.pass_by(SAMPLE_S, {"one": rate * SAMPLE_S}, is_waiting=True)
    assert play.up == pytest.approx(LINE_BYTES_PER_S, rel=0.01)


def test_a_connection_that_is_gone_counts_no_more() -> None:
    play = Play("one", "other")
    play.line.end("other")  # type: ignore[arg-type]
    for _ in range(20):
        play.pass_by(SAMPLE_S, {"one": 1e5, "other": 1e9}, is_waiting=True)
    assert play.up == pytest.approx(1e5 / SAMPLE_S)


@pytest.mark.parametrize("bytes_per_s", [5e4, LINE_BYTES_PER_S, 1e8])
def test_what_arrives_is_metered_over_the_time_in_which_anything_does(bytes_per_s: float) -> None:
    line, now = Line(LanesConfig()), 100.0
    for number in range(4000):
        now += RECORD_BYTES / bytes_per_s
        if number % 100 == 0:
            now += 30.0  # until the next round
        line.arrived(RECORD_BYTES, now)
    assert line.stats().down_bytes_per_s == pytest.approx(bytes_per_s, rel=0.02)


def test_connections_of_many_lanes_are_no_more_than_the_line_bears() -> None:
    slow, fast = 5 * LEAST_WINDOW_BYTES, 1000 * LEAST_WINDOW_BYTES
    assert num_stripes(4, 1, 0.0) == 4
    assert [num_stripes(4, num_lanes, 0.0) for num_lanes in (2, 3, 7, 100)] == [2, 1, 1, 1]
    assert [num_stripes(4, num_lanes, slow) for num_lanes in (1, 2, 7)] == [4, 2, 1]
    assert [num_stripes(4, num_lanes, fast) for num_lanes in (1, 7, 250, 5000)] == [4, 4, 4, 1]


@dataclass(eq=False)
class BusyLane:
    unsent_bytes: int


def test_only_lanes_that_have_something_to_send_share_the_line() -> None:
    line, rtt_s = Line(LanesConfig()), 0.05
    lanes = [BusyLane(1) for _ in range(4)]
    for lane in lanes:
        line.carries(lane)
    assert line.num_stripes(rtt_s) == 1
    for lane in lanes[1:]:
        lane.unsent_bytes = 0
    assert line.num_stripes(rtt_s) == 4
    lanes[1].unsent_bytes = 1
    assert line.num_stripes(rtt_s) == 2
    del lane, lanes[0]
    assert line.num_stripes(rtt_s) == 4  # a lane that is no more needs no part


def test_connections_that_share_a_line_have_no_more_under_way_than_fills_it() -> None:
    product = 10 * LEAST_WINDOW_BYTES
    assert window_bytes(1, product) == 0  # it may find out for itself
    assert window_bytes(7, 0.0) == 0  # so does everybody, while nothing is known
    for num_connections in (2, 3, 5, 10):
        assert product <= num_connections * window_bytes(num_connections, product) < 2 * product
    assert window_bytes(1000, product) == LEAST_WINDOW_BYTES


def test_a_connection_is_limited_while_others_share_its_line_and_no_longer() -> None:
    play = Play("one")
    for _ in range(20):
        play.pass_by(SAMPLE_S, {"one": LINE_BYTES_PER_S * SAMPLE_S}, is_waiting=True)
    lanes = [BusyLane(1) for _ in range(4)]
    assert play.line.window_bytes(0.05) == 0
    for lane in lanes:
        play.line.carries(lane)
    assert 0 < play.line.window_bytes(0.05) < LINE_BYTES_PER_S * 0.05
    for lane in lanes[1:]:
        lane.unsent_bytes = 0
    assert play.line.window_bytes(0.05) == 0


def test_a_lane_alone_knows_what_each_connection_has_of_its_line() -> None:
    play = Play("one")
    assert play.line.part_bytes_per_s(0.05) == 0.0  # nothing is known yet
    for _ in range(20):
        play.pass_by(SAMPLE_S, {"one": LINE_BYTES_PER_S * SAMPLE_S}, is_waiting=True)
    lanes = [BusyLane(1), BusyLane(0)]
    for lane in lanes:
        play.line.carries(lane)
    assert play.line.part_bytes_per_s(0.05) == pytest.approx(LINE_BYTES_PER_S / 4)
    lanes[1].unsent_bytes = 1
    assert play.line.part_bytes_per_s(0.05) == 0.0  # they keep to their windows
    lanes[1].unsent_bytes = 0
    for number in range(4000):
        play.line.arrived(RECORD_BYTES, 100.0 + number * RECORD_BYTES / (2 * LINE_BYTES_PER_S))
    assert play.line.part_bytes_per_s(0.05) == pytest.approx(LINE_BYTES_PER_S / 2, rel=0.02)


def test_the_kernel_keeps_to_the_pace_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    connection = Connection(near, PEER, stall_timeout_s=10.0)
    with far:
        connection.pace(1e6)
        assert near.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) == 1_000_000
        connection.pace(0)
        assert near.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) in (-1, (1 << 32) - 1)
    connection.close()


def test_a_sender_keeps_to_the_part_of_the_line_that_it_has_at_the_moment() -> None:
    play = Play("one")
    for _ in range(20):
        play.pass_by(SAMPLE_S, {"one": 1e9 * SAMPLE_S}, is_waiting=True)  # next to no way to go
    lanes = [BusyLane(1), BusyLane(1)]
    for lane in lanes:
        play.line.carries(lane)
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    connection = Connection(near, PEER, stall_timeout_s=10.0)
    with far:
        probe = KernelProbe(connection, LinkMeter(play.line))
        probe.look()
        assert near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 1  # ours, and not the kernel's
        lanes[1].unsent_bytes = 0
        probe.look()
        assert near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 0
        probe.close()
    connection.close()


def test_an_idle_connection_survives_a_lost_probe() -> None:
    """The user timeout also ends an idle connection of which one probe was not answered by then."""
    with socket.socket() as sock:
        tune(sock)
        idle_s, interval_s, count, limit_ms = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        )
    assert idle_s + 3 * interval_s < limit_ms / 1000
    assert count >= 3


def test_the_kernel_keeps_to_the_limit_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    connection = Connection(near, PEER, stall_timeout_s=10.0)
    with far:
        connection.limit(LEAST_WINDOW_BYTES)
        limited_bytes = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert LEAST_WINDOW_BYTES <= limited_bytes <= 2 * LEAST_WINDOW_BYTES
        connection.limit(0)
        assert near.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 0
    connection.close()


def test_bytes_that_nobody_has_read_yet_are_no_silence() -> None:
    """Their reader waits with another message, perhaps, and their sender is not to blame."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    connection, meter = Connection(near, PEER, stall_timeout_s=10.0), LinkMeter()
    meter.listens(connection, "direct")
    with far:
        meter.ear.heard_s = time.monotonic() - 1000.0
        far.sendall(b"something")
        assert meter.silent_s() < 100.0
        meter.forget(connection)
        assert meter.silent_s() > 100.0
    connection.close()


def test_local_connections_are_heard_by_who_reads_them_alone() -> None:
    near, far = socket.socketpair()
    connection = Connection(near, PEER, stall_timeout_s=10.0)
    meter = LinkMeter(Line(ALL_ARE_FAR))
    meter.listens(connection, "shm")
    with far:
        assert meter.silent_s() == float("inf")
        far.sendall(b"something")
        connection.read_first(memoryview(bytearray(100)))
        assert meter.silent_s() < 100.0
    connection.close()
