"""Where peers are, and what must cross between their sites."""

from __future__ import annotations

import pytest

from experiments.testbed.layout import Layout, Link


def test_a_layout_is_read_from_either_notation() -> None:
    assert Layout.parse("6x4") == Layout.parse("6+6+6+6")
    assert Layout.parse("5+2+1").sites == (5, 2, 1)


@pytest.mark.parametrize("text", ["", "0+1", "4x0", "two", "300"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Layout.parse(text)


def test_every_peer_has_an_address_of_its_own_in_its_sites_network() -> None:
    layout = Layout.parse("5+2+1")
    addresses = [layout.address_of(peer) for peer in range(layout.num_peers)]
    assert len(set(addresses)) == 8
    assert [layout.site_of(peer) for peer in range(8)] == [0, 0, 0, 0, 0, 1, 1, 2]
    assert addresses[5].startswith("10.101.")


@pytest.mark.parametrize(
    ("text", "least", "butterfly"), [("4+4", 2, 8), ("2x4", 6, 12), ("6x4", 6, 36)]
)
def test_bytes_between_sites_are_those_of_the_textbook(
    text: str, least: float, butterfly: float
) -> None:
    layout = Layout.parse(text)
    assert layout.least_bytes(1) == least
    assert layout.butterfly_bytes(1) == pytest.approx(butterfly)


def test_a_ring_within_one_site_crosses_nothing() -> None:
    assert Layout.parse("4").ring_bytes(1) == 0
    assert Layout.parse("4+4").ring_bytes(1) == pytest.approx(3.5)


def test_the_ideal_time_counts_headers_and_two_round_trips() -> None:
    link = Link(rate_bits_per_s=100e6, rtt_s=0.05)
    assert link.ideal_s(12.5e6 * 1448 / 1500) == pytest.approx(1.1)
