"""One meeting of a site: who sends what to whom, and what is not believed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.averaging.swarm import identity_of
from zoonet.averaging.chunks import Header, Kind, decode_header
from zoonet.averaging.meetings import Meeting, Meetings
from zoonet.averaging.messages import Lease, Round
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.averaging.site_table import SiteTable
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart, ProtocolViolation

ADA, BOB, CYD = sorted(identity_of(name).peer_id for name in ("ada", "bob", "cyd"))
KEY = bytes(range(16))
SIZE = 100
WEIGHTS = {ADA: 3, BOB: 1, CYD: 2}


class Room:
    """Tables of one meeting whose messages travel when the test says so."""

    def __init__(self) -> None:
        self.meeting = Meeting(1, (ADA, BOB, CYD), tuple(WEIGHTS.values()))
        self.posted: list[tuple[PeerId, PeerId, bytes, bytes]] = []
        self.tables = {peer: self._table(peer) for peer in WEIGHTS}
        self.values = {
            peer: np.random.default_rng(at).random(SIZE, np.float32)
            for at, peer in enumerate(WEIGHTS)
        }

    def _table(self, me: PeerId) -> SiteTable:
        def post(to: PeerId, header: bytes, payload: object) -> None:
            self.posted.append((me, to, header, bytes(payload)))  # type: ignore[call-overload]

        return SiteTable(self.meeting, KEY, me, SIZE, post)

    def arrive(self, *peers: PeerId) -> None:
        for peer in peers:
            self.tables[peer].arrive(self.values[peer].copy(), np.empty(SIZE, np.float32))

    def deliver(self) -> None:
        while self.posted:
            self.hand_over(*self.posted.pop(0))

    def hand_over(self, sender: PeerId, to: PeerId, raw: bytes, payload: bytes) -> bool:
        header = decode_header(raw)
        place = self.tables[to].admit(sender, header, len(payload))
        if place is not None:
            place[:] = payload
            self.tables[to].arrived(sender, header)
        return place is not None

    def end(self, peer: PeerId) -> np.ndarray:
        into = self.values[peer].copy()
        self.tables[peer].end(into)
        return into

    def mean(self, *peers: PeerId) -> np.ndarray:
        total = sum(WEIGHTS[peer] for peer in peers)
        return sum(self.values[peer] * np.float32(WEIGHTS[peer] / total) for peer in peers)


def part(number: int) -> bytes:
    return Header(Kind.PART, KEY, 1, number).encode()


def test_all_come_to_the_same_mean_by_the_weights_of_their_leases() -> None:
    room = Room()
    room.arrive(ADA)
    room.deliver()  # early parts wait at those who are not there yet
    room.arrive(BOB, CYD)
    room.deliver()
    assert not any(table.owing() for table in room.tables.values())
    found = [room.end(peer) for peer in WEIGHTS]
    np.testing.assert_allclose(found[0], room.mean(ADA, BOB, CYD), rtol=1e-6)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_without_one_the_others_average_all_but_its_chunks() -> None:
    room = Room()
    room.arrive(ADA, BOB)
    room.deliver()
    assert room.tables[ADA].owing() == {BOB, CYD}  # he waits for her himself
    assert room.tables[ADA].hurry() == {CYD}
    assert room.tables[BOB].hurry() == {CYD}
    room.deliver()
    assert not room.tables[ADA].owing() and not room.tables[BOB].owing()
    found, mean = room.end(ADA), room.mean(ADA, BOB)
    for number in range(num_chunks(SIZE)):
        at = slice(*chunk_bounds(SIZE, number))
        is_lost = room.meeting.owner_of(number) == CYD
        expected = room.values[ADA][at] if is_lost else mean[at]
        np.testing.assert_allclose(found[at], expected, rtol=1e-6)


def test_who_comes_too_late_keeps_what_it_has() -> None:
    """A mean of others alone would cost it its own work."""
    room = Room()
    room.arrive(ADA, BOB)
    room.deliver()
    room.tables[ADA].hurry()
    room.tables[BOB].hurry()
    room.arrive(CYD)
    room.deliver()
    found = room.end(CYD)
    for number in range(num_chunks(SIZE)):
        at = slice(*chunk_bounds(SIZE, number))
        if room.meeting.owner_of(number) != CYD:
            np.testing.assert_array_equal(found[at], room.values[CYD][at])


def test_a_mean_that_does_not_hold_ones_own_part_is_passed_over() -> None:
    room = Room()
    room.arrive(ADA)
    number = next(n for n in range(num_chunks(SIZE)) if room.meeting.owner_of(n) == BOB)
    start, stop = chunk_bounds(SIZE, number)
    payload = bytes(4 * (stop - start))
    others = Header(Kind.MEAN, KEY, 1, number, 0, room.meeting.bits((BOB, CYD))).encode()
    everyone = Header(Kind.MEAN, KEY, 1, number, 0, room.meeting.bits((ADA, BOB))).encode()
    assert not room.hand_over(BOB, ADA, others, payload)
    assert room.hand_over(BOB, ADA, everyone, payload)
    assert not room.hand_over(BOB, ADA, everyone, payload)  # once
    assert not room.end(ADA)[start:stop].any()


@pytest.mark.parametrize("kind", [Kind.PART, Kind.MEAN])
def test_values_that_are_not_finite_are_refused(kind: Kind) -> None:
    room = Room()
    room.arrive(ADA)
    owner = ADA if kind == Kind.PART else BOB
    number = next(n for n in range(num_chunks(SIZE)) if room.meeting.owner_of(n) == owner)
    start, stop = chunk_bounds(SIZE, number)
    header = Header(kind, KEY, 1, number, 0, room.meeting.bits((ADA, BOB))).encode()
    with pytest.raises(InvalidPart) as refused:
        room.hand_over(BOB, ADA, header, np.full(stop - start, np.nan, np.float32).tobytes())
    assert refused.value.peer == BOB
    np.testing.assert_array_equal(room.end(ADA), room.values[ADA])


def test_what_is_no_part_of_the_meeting_is_a_violation() -> None:
    room = Room()
    stranger = identity_of("mal").peer_id
    mine = next(n for n in range(num_chunks(SIZE)) if room.meeting.owner_of(n) == ADA)
    hers = next(n for n in range(num_chunks(SIZE)) if room.meeting.owner_of(n) == CYD)
    size = 4 * (chunk_bounds(SIZE, mine)[1] - chunk_bounds(SIZE, mine)[0])
    wrong = {
        "from a stranger": (stranger, part(mine), size),
        "a chunk that there is not": (BOB, part(10_000), size),
        "too long": (BOB, part(mine), 1 << 20),
        "of another owner": (BOB, part(hers), size),
        "a mean that is not its to make": (BOB, Header(Kind.MEAN, KEY, 1, hers).encode(), size),
        "of another kind": (BOB, Header(Kind.SUM, KEY, 1, mine).encode(), size),
    }
    for what, (sender, header, num_bytes) in wrong.items():
        with pytest.raises(ProtocolViolation) as refused:
            room.tables[ADA].admit(sender, decode_header(header), num_bytes)
        assert refused.value.peer == sender, what


def test_meetings_are_at_the_same_part_of_every_lease() -> None:
    leases = (Lease(ADA, (), 24, 0), Lease(BOB, (), 6, 0), Lease(CYD, (), 24, 1))
    plan = Round(job_id="0" * 32, index=3, view=0, parent=bytes(32), leases=leases)
    of_ada = Meetings(plan, ADA, 24, 2).at_steps
    of_bob = Meetings(plan, BOB, 24, 2).at_steps
    assert list(of_ada) == [4, 8, 12, 16, 20]  # the others would be without anybody else
    assert list(of_bob) == [1, 2, 3, 4, 5]
    assert [one.number for one in of_ada.values()] == [one.number for one in of_bob.values()]
    assert of_ada[4].weights == (24, 6)
    assert Meetings(plan, CYD, 24, 2).at_steps == {}
    assert Meetings(plan, ADA, 24, 2).key == Meetings(plan, BOB, 24, 2).key


def test_chunks_change_owners_from_meeting_to_meeting() -> None:
    """So what a lost neighbour owned does not stay apart for a whole round."""
    owners = {Meeting(number, (ADA, BOB, CYD), (1, 1, 1)).owner_of(0) for number in range(3)}
    assert owners == {ADA, BOB, CYD}


def test_the_same_chunk_twice_at_once_is_refused_and_a_second_time_goes_nowhere() -> None:
    """Else one that is still being written would be averaged, and go back as what it holds."""
    room = Room()
    room.arrive(ADA)
    number = next(n for n in range(num_chunks(SIZE)) if room.meeting.owner_of(n) == ADA)
    start, stop = chunk_bounds(SIZE, number)
    header = decode_header(part(number))
    place = room.tables[ADA].admit(BOB, header, 4 * (stop - start))
    assert place is not None
    with pytest.raises(ProtocolViolation) as refused:
        room.tables[ADA].admit(BOB, header, 4 * (stop - start))
    assert refused.value.peer == BOB
    place[:] = bytes(len(place))
    room.tables[ADA].arrived(BOB, header)
    assert room.tables[ADA].admit(BOB, header, 4 * (stop - start)) is None


def test_whoever_has_done_a_step_has_been_expected_even_where_this_peer_was_not() -> None:
    leases = (Lease(ADA, (), 2, 0), Lease(BOB, (), 24, 0), Lease(CYD, (), 1, 0))
    plan = Round(job_id="0" * 32, index=3, view=0, parent=bytes(32), leases=leases)
    of_ada = Meetings(plan, ADA, 24, 6)
    assert [one.number for one in of_ada.at_steps.values()] == [2]
    assert of_ada.expected_by(1) == {BOB}
    assert of_ada.expected_by(2) == {ADA, BOB}
