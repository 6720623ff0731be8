"""What a peer makes of looks at its links."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.forests import names
from zoonet.averaging.links import (
    FAR_S,
    MAX_LINKS,
    MAX_RATIO,
    NEAR_S,
    NOMINAL_WAN,
    Link,
    LinkBook,
    PeerLinks,
    resolve,
)
from zoonet.crypto import PeerId

ADA, BOB, CYD = (PeerId(name) for name in ("ada", "bob", "cyd"))


@dataclass
class Line:
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0


UNSEEN = Line()


def look(rtt_s: float, up: float = 0.0, down: float = 0.0) -> Link:
    return Link(rtt_s=rtt_s, up_bytes_per_s=up, down_bytes_per_s=down)


def test_peers_below_five_milliseconds_are_near() -> None:
    book = LinkBook()
    book.observe({ADA: look(0.001), BOB: look(0.050), CYD: look(0.0)}, UNSEEN)
    assert book.near() == (ADA,)
    assert book.far_rtt_s() == 0.050


def test_a_neighbour_stays_one_until_it_is_clearly_far() -> None:
    book = LinkBook()
    book.observe({ADA: look(0.9 * NEAR_S)}, UNSEEN)
    for _ in range(100):
        book.observe({ADA: look(0.9 * FAR_S)}, UNSEEN)
    assert book.near() == (ADA,)
    for _ in range(100):
        book.observe({ADA: look(1.2 * FAR_S)}, UNSEEN)
    assert book.near() == ()
    for _ in range(100):
        book.observe({ADA: look(1.1 * NEAR_S)}, UNSEEN)
    assert book.near() == ()


def test_a_moment_of_load_does_not_move_a_neighbour_away() -> None:
    book = LinkBook()
    book.observe({ADA: look(0.0005)}, UNSEEN)
    book.observe({ADA: look(0.060)}, UNSEEN)
    assert book.near() == (ADA,)
    for _ in range(4):
        book.observe({ADA: look(0.0005)}, UNSEEN)
    assert book.link(ADA).rtt_s < 0.001


def test_a_line_is_what_is_told_of_it_and_not_what_its_links_add_up_to() -> None:
    book = LinkBook()
    seen = {ADA: look(0.05, 4e6, 2e6), BOB: look(0.05, 6e6, 1e6), CYD: look(1e-4, 9e8)}
    for _ in range(20):
        book.observe(seen, Line(7e6, 2e6))
    own = book.own()
    assert own.near == (CYD,)
    assert (own.up_bytes_per_s, own.down_bytes_per_s) == (7e6, 2e6)
    assert own.lan_bytes_per_s == 0  # beside a slow line nobody sees what it could carry


def test_a_line_of_which_nothing_new_is_told_keeps_its_estimate() -> None:
    book, seen = LinkBook(), {ADA: look(0.05)}
    book.observe(seen, Line(8e6, 8e6))
    book.observe(seen, Line(6e6, 6e6))
    said = book.own()
    assert 6e6 < said.up_bytes_per_s < 8e6
    for _ in range(20):
        book.observe(seen, Line(6e6, 6e6))
    book.observe(seen, UNSEEN)
    assert book.own() == said


def test_a_line_that_carries_more_is_believed_soon_and_one_that_carries_less_slowly() -> None:
    book, seen = LinkBook(), {ADA: look(0.05)}
    for rate, num_looks in ((10e6, 1), (20e6, 8), (5e6, 100)):
        for number in range(num_looks):
            book.observe(seen, Line(rate + number, rate - number))
        assert book.own().up_bytes_per_s == pytest.approx(rate, rel=0.02)
        assert book.own().down_bytes_per_s == pytest.approx(rate, rel=0.02)


def test_who_has_nobody_far_away_has_no_line() -> None:
    book = LinkBook()
    book.observe({ADA: look(0.05)}, Line(8e6, 8e6))
    for _ in range(20):
        book.observe({ADA: look(1e-4, 1e8, 1e8)}, Line(8e6, 8e6))
    assert book.own().up_bytes_per_s == 0


def test_where_everybody_is_near_it_is_the_local_network_that_counts() -> None:
    book = LinkBook()
    book.observe({ADA: look(1e-4, 3e8, 2e8), BOB: look(1e-4, 1e8, 1e8)}, UNSEEN)
    own = book.own()
    assert (own.up_bytes_per_s, own.down_bytes_per_s) == (0.0, 0.0)
    assert own.lan_bytes_per_s == pytest.approx(3e8)


@given(st.lists(st.floats(), min_size=3, max_size=3))
def test_looks_that_cannot_be_are_nothing_seen(values: list[float]) -> None:
    book = LinkBook()
    book.observe({ADA: look(*values)}, Line(*values[1:]))
    own, link = book.own(), book.link(ADA)
    for value in (link.rtt_s, own.up_bytes_per_s, own.down_bytes_per_s, own.lan_bytes_per_s):
        assert math.isfinite(value) and value >= 0


def test_the_book_is_bounded() -> None:
    book = LinkBook()
    for peer in names(MAX_LINKS + 10):
        book.observe({peer: look(0.001)}, UNSEEN)
    assert book.link(names(1)[0]) == Link()
    assert len(book.near()) == 256


def test_what_is_unknown_counts_as_the_median_of_what_is_known() -> None:
    links = {ADA: PeerLinks(up_bytes_per_s=2e6), BOB: PeerLinks(up_bytes_per_s=4e6)}
    rates = resolve([ADA, BOB, CYD], links)
    assert [one.up for one in rates] == [2e6, 4e6, 3e6]
    assert [one.down for one in rates] == [NOMINAL_WAN] * 3
    assert all(one.lan > NOMINAL_WAN for one in rates)


@given(st.lists(st.floats(), min_size=1, max_size=9))
def test_a_claim_is_believed_within_bounds(claims: list[float]) -> None:
    peers = names(len(claims))
    links = {p: PeerLinks(up_bytes_per_s=claim) for p, claim in zip(peers, claims, strict=True)}
    ups = [one.up for one in resolve(peers, links)]
    assert all(math.isfinite(up) and up > 0 for up in ups)
    assert max(ups) <= MAX_RATIO**2 * min(ups) * (1 + 1e-9)
