"""The planner: bytes across sites, the shares of peers, and what a plan is predicted to take."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.forests import everyone_is_served, names
from zoonet.averaging.links import PeerLinks, Rates
from zoonet.averaging.plan import (
    MAX_TREES,
    Plan,
    Tree,
    check_shape,
    chunk_values,
    num_chunks,
    repair,
)
from zoonet.averaging.planner import (
    Payload,
    is_reasonable,
    loads,
    make_butterfly,
    make_plan,
    predict,
    predicted_s,
    wan_bytes,
)
from zoonet.averaging.slices import Crew, equal, solve
from zoonet.crypto import PeerId

VALUES = 16 * 1024 * 1024  # 64 MiB of fp32
PAYLOAD = Payload(num_values=VALUES)
MBIT = 125_000.0

Swarm = tuple[list[PeerId], dict[PeerId, PeerLinks]]


def swarm(*sizes: int, up: Mapping[int, float] | None = None, line: float = 100 * MBIT) -> Swarm:
    """Sites of so many peers; `up` gives a site's peers another rate than an equal part of it."""
    links: dict[PeerId, PeerLinks] = {}
    for site, size in enumerate(sizes):
        group = names(size, f"{site:02}-")
        for peer in group:
            rate = (up or {}).get(site, line / size)
            near = tuple(other for other in group if other != peer)
            links[peer] = PeerLinks(near=near, up_bytes_per_s=rate, down_bytes_per_s=rate)
    return sorted(links), links


def planned(found: Swarm, num_values: int = VALUES, **bytes_per_value: float) -> Plan:
    peers, links = found
    plan = make_plan(peers, (), links, num_values, **bytes_per_value)
    check_shape(plan, num_values, peers, "coordinator")
    return plan


def shares(plan: Plan) -> dict[int, float]:
    """Part of the chunks that each root averages."""
    found: Counter[int] = Counter()
    for tree in plan.trees:
        found[tree.root] += tree.stop - tree.first
    return {root: num / plan.trees[-1].stop for root, num in found.items()}


def site_shares(plan: Plan) -> list[float]:
    return [
        sum(share for root, share in shares(plan).items() if root in site) for site in plan.sites
    ]


# --- bytes between sites ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (6, 6, 6, 6), (5, 2, 1), (1, 1, 1)])
def test_between_sites_travel_2_s_minus_1_payloads(sizes: tuple[int, ...]) -> None:
    found = swarm(*sizes)
    num_bytes = wan_bytes(planned(found), found[0], PAYLOAD)
    assert num_bytes == 2 * (len(sizes) - 1) * 4 * VALUES


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (6, 6, 6, 6), (5, 2, 1)])
def test_the_butterfly_sends_as_much_as_its_formula_says(sizes: tuple[int, ...]) -> None:
    peers, links = swarm(*sizes, up=dict.fromkeys(range(len(sizes)), 1e6))
    sites = planned((peers, links)).sites
    plan = make_butterfly(peers, (), links, PAYLOAD)
    num = sum(sizes)
    expected = 2 * (num - sum(size * size for size in sizes) / num) * 4 * VALUES
    largest_slice = 4 * 256 * 1024 * num
    assert wan_bytes(plan, peers, PAYLOAD, sites=sites) == pytest.approx(
        expected, abs=2 * largest_slice
    )


def test_six_peers_in_each_of_four_sites_send_six_times_less_than_the_butterfly() -> None:
    peers, links = swarm(6, 6, 6, 6)
    plan = planned((peers, links))
    flat = make_butterfly(peers, (), links, PAYLOAD)
    ratio = wan_bytes(flat, peers, PAYLOAD, sites=plan.sites) / wan_bytes(plan, peers, PAYLOAD)
    assert ratio >= 5.8


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(1, 5_000_000),
    st.lists(st.floats(1e4, 1e8), min_size=5, max_size=5),
)
@settings(max_examples=40)
def test_any_sites_plan_with_the_fewest_bytes_and_serve_everyone(
    sizes: list[int], num_values: int, rates: list[float]
) -> None:
    found = swarm(*sizes, up=dict(enumerate(rates)))
    plan = planned(found, num_values)
    everyone_is_served(plan, found[0], set())
    payload = Payload(num_values=num_values)
    assert wan_bytes(plan, found[0], payload) == 2 * (len(sizes) - 1) * 4 * num_values
    assert len(plan.trees) <= 2 * sum(sizes)


# --- shares -------------------------------------------------------------------------------------


def test_equal_peers_of_equal_sites_get_equal_shares_and_a_tree_each() -> None:
    plan = planned(swarm(4, 4))
    assert [tree.stop - tree.first for tree in plan.trees] == [num_chunks(VALUES) // 8] * 8
    carried = loads(plan, plan.peers, PAYLOAD)
    assert all(load == carried[0] for load in carried)


def test_one_site_is_a_butterfly() -> None:
    plan = planned(swarm(8))
    assert len(plan.sites) == 1
    assert shares(plan) == dict.fromkeys(range(8), 1 / 8)


def test_peers_alone_are_a_butterfly_weighted_by_their_links() -> None:
    plan = planned(swarm(1, 1, 1, 1, up={0: 8e6, 1: 8e6, 2: 4e6, 3: 4e6}))
    assert plan.sites == ((0,), (1,), (2,), (3,))
    # 2 x + 1 = T rate, sum of x = 1: T rate = 2 and 1
    assert shares(plan) == {0: 0.5, 1: 0.5}


def test_a_site_with_a_slow_line_averages_less() -> None:
    plan = planned(swarm(2, 2, 2, up={0: 10e6, 1: 10e6, 2: 7e6}))
    fast, other, slow = site_shares(plan)
    # r + 1 = T line: with lines 20, 20 and 14: r = 13/27, 13/27, 1/27
    assert fast == pytest.approx(13 / 27, abs=0.01)
    assert other == pytest.approx(13 / 27, abs=0.01)
    assert slow == pytest.approx(1 / 27, abs=0.01)


def test_where_one_line_is_the_bottleneck_the_others_share_by_their_rates() -> None:
    plan = planned(swarm(1, 1, 1, 1, up={0: 1e6, 1: 20e6, 2: 20e6, 3: 40e6}))
    assert site_shares(plan) == pytest.approx([0, 0.25, 0.25, 0.5], abs=0.01)


def test_within_a_site_the_fast_peers_speak_for_it() -> None:
    peers, links = swarm(3, 3)
    for peer, rate in zip(peers[:3], (1e6, 2e6, 3e6), strict=True):
        links[peer] = PeerLinks(near=links[peer].near, up_bytes_per_s=rate, down_bytes_per_s=rate)
    carried = loads(planned((peers, links)), peers, PAYLOAD)
    ups = [load.wan_up for load in carried[:3]]
    assert ups == pytest.approx([4 * VALUES / 6, 4 * VALUES / 3, 4 * VALUES / 2], rel=0.05)


def test_owners_share_by_their_rates_where_another_line_is_the_bottleneck() -> None:
    peers, links = swarm(1, 2, up={0: 1e6})
    for peer, rate in zip(peers[1:], (5e6, 15e6), strict=True):
        links[peer] = PeerLinks(near=links[peer].near, up_bytes_per_s=rate, down_bytes_per_s=rate)
    carried = loads(planned((peers, links)), peers, PAYLOAD)
    assert carried[2].wan_up == pytest.approx(3 * carried[1].wan_up, rel=0.05)


def test_in_one_site_whoever_has_a_slow_network_averages_less() -> None:
    peers, links = swarm(6)
    for peer, rate in zip(peers, (1e6, 2e6, 2e6, 2e6, 2e6, 2e6), strict=True):
        links[peer] = PeerLinks(near=links[peer].near, lan_bytes_per_s=rate)
    # of two that contribute, with four that only receive: 1 + 4 x = T rate, so T = 2
    plan = make_plan(peers[:2], peers[2:], links, VALUES)
    assert shares(plan) == {0: 0.25, 1: 0.75}


@given(st.data())
@settings(max_examples=40)
def test_shares_are_shares_and_every_root_owns_what_it_averages(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=4))
    crews, num = [], 1
    for contributors, followers in [(1, 0), *sizes]:
        if contributors + followers:
            stop = num - 1 + contributors
            crews.append(Crew(tuple(range(num - 1, stop)), tuple(range(stop, stop + followers))))
            num = stop + followers + 1
    rate = st.floats(1e5, 1e8)
    rates = [Rates(data.draw(rate), data.draw(rate), data.draw(rate)) for _ in range(num)]
    found = solve(crews, rates, data.draw(st.floats(0.02, 4)), data.draw(st.floats(0.02, 4)))
    assert sum(found.roots.values()) == pytest.approx(1)
    for crew in crews:
        if crew.contributors:
            assert sum(found.owned[peer] for peer in crew.contributors) == pytest.approx(1)
    for peer, share in found.roots.items():
        assert 0 <= share <= found.owned[peer] + 1e-6


def test_no_other_split_of_whole_chunks_over_two_roots_is_faster() -> None:
    peers, links = swarm(1, 1, 1, up={0: 5e6, 1: 9e6, 2: 3e6})
    best = predicted_s(planned((peers, links)), peers, links, PAYLOAD)
    num = num_chunks(VALUES)
    for first in range(0, num + 1, 8):
        for second in range(first, num + 1, 8):
            cuts = [(0, first, 0), (first, second, 1), (second, num, 2)]
            trees = tuple(Tree(a, b, site, (0, 1, 2)) for a, b, site in cuts if a < b)
            plan = Plan(tuple(peers), ((0,), (1,), (2,)), trees)
            assert predicted_s(plan, peers, links, PAYLOAD) >= best * 0.985


@given(st.data())
@settings(max_examples=30)
def test_no_random_forest_is_faster(data: st.DataObject) -> None:
    rates = st.floats(1e6, 20e6)
    peers, links = swarm(2, 1, 2, up={site: data.draw(rates) for site in range(3)})
    best = predict(planned((peers, links)), peers, links, PAYLOAD).busy_s
    sites, num = ((0, 1), (2,), (3, 4)), num_chunks(VALUES)
    cuts = sorted(data.draw(st.sets(st.integers(1, num - 1), min_size=1, max_size=8)) | {0, num})
    trees = []
    for first, stop in itertools.pairwise(cuts):
        owners = tuple(data.draw(st.sampled_from(site)) for site in sites)
        trees.append(Tree(first, stop, data.draw(st.integers(0, 2)), owners))
    other = Plan(tuple(peers), sites, tuple(trees))
    assert predict(other, peers, links, PAYLOAD).busy_s >= 0.97 * best


def test_a_peer_that_promises_the_world_does_not_get_it_all() -> None:
    peers, links = swarm(1, 1, 1, 1)
    links[peers[0]] = PeerLinks(up_bytes_per_s=1e30, down_bytes_per_s=float("inf"))
    plan = planned((peers, links))
    assert shares(plan)[0] < 1


def test_links_that_nobody_knows_are_taken_for_equal() -> None:
    peers = names(6)
    plan = make_plan(peers, (), {}, VALUES)
    assert {round(share, 2) for share in shares(plan).values()} <= {0.16, 0.17}


def test_a_small_vector_is_spread_over_sites_first() -> None:
    plan = planned(swarm(6, 6, 6, 6), 8 * 16 * 1024)
    assert site_shares(plan) == [0.25] * 4


def test_a_vector_of_one_value_has_one_tree() -> None:
    plan = planned(swarm(2, 2), 1)
    assert len(plan.trees) == 1


# --- followers ----------------------------------------------------------------------------------


def test_followers_own_nothing_where_somebody_of_their_site_contributes() -> None:
    peers, links = swarm(3, 3)
    followers = {peers[0], peers[4]}
    contributors = [peer for peer in peers if peer not in followers]
    plan = make_plan(contributors, followers, links, VALUES)
    check_shape(plan, VALUES, contributors, "coordinator")
    everyone_is_served(plan, contributors, set())
    assert not {0, 4} & {owner for tree in plan.trees for owner in tree.owners}
    carried = loads(plan, contributors, PAYLOAD)
    assert (carried[0].lan_up, carried[0].lan_down) == (0, 4 * VALUES)


def test_a_site_of_followers_shares_the_fan_out() -> None:
    peers, links = swarm(3, 2)
    plan = make_plan(peers[:3], peers[3:], links, VALUES)
    check_shape(plan, VALUES, peers[:3], "coordinator")
    everyone_is_served(plan, peers[:3], set())
    assert wan_bytes(plan, peers[:3], PAYLOAD) == 4 * VALUES  # the mean, once
    carried = loads(plan, peers[:3], PAYLOAD)
    assert carried[3].wan_down == carried[4].wan_down == 2 * VALUES


def test_nobody_to_average_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="contributes"):
        make_plan((), names(2), {}, VALUES)


# --- losses -------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25)
def test_a_planned_forest_survives_any_losses(data: st.DataObject) -> None:
    peers, links = swarm(*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    plan = planned((peers, links), 64 * 16 * 1024)
    lost: set[PeerId] = set()
    while len(lost) < len(peers) - 1:
        lost.add(data.draw(st.sampled_from([peer for peer in peers if peer not in lost])))
        left = [peer for peer in peers if peer not in lost]
        plan = repair(plan, lost, left)
        check_shape(plan, 64 * 16 * 1024, left, "coordinator")
        everyone_is_served(plan, left, lost)
    assert len(plan.trees) <= MAX_TREES


def test_after_a_loss_the_plan_is_nearly_as_fast_as_a_new_one() -> None:
    peers, links = swarm(4, 4)
    plan = planned((peers, links))
    left = peers[1:]
    repaired = repair(plan, {peers[0]}, left)
    fresh = make_plan(left, (), links, VALUES)
    again = predict(fresh, left, links, PAYLOAD).total_s
    assert predict(repaired, left, links, PAYLOAD).total_s <= 1.1 * again


# --- time ---------------------------------------------------------------------------------------


def test_the_prediction_is_the_busiest_line_and_a_round_trip() -> None:
    peers, links = swarm(4, 4)
    forecast = predict(planned((peers, links)), peers, links, PAYLOAD, wan_rtt_s=0.05)
    assert forecast.link in ("wan up", "wan down")
    assert forecast.busy_s == pytest.approx(4 * VALUES / (100 * MBIT))
    chunk_s = 2 * 4 * chunk_values(VALUES) / (25 * MBIT)
    assert forecast.latency_s == pytest.approx(0.05 + chunk_s)
    assert forecast.wan_bytes == 2 * 4 * VALUES


def test_where_peers_share_a_line_only_their_sum_counts() -> None:
    peers, links = swarm(2, 2)
    plan = Plan(tuple(peers), ((0, 1), (2, 3)), (Tree(0, num_chunks(VALUES), 0, (0, 2)),))
    apart = predict(plan, peers, links, PAYLOAD)
    shared = predict(plan, peers, links, PAYLOAD, shares_lines=True)
    assert shared.busy_s == pytest.approx(apart.busy_s / 2)
    assert shared.link_bytes == 4 * VALUES


def test_a_codec_across_sites_saves_time_in_proportion() -> None:
    peers, links = swarm(4, 4)
    plan = planned((peers, links), wan_bytes_per_value=1.0)
    payload = Payload(num_values=VALUES, wan_bytes_per_value=1.0)
    exact = predict(planned((peers, links)), peers, links, PAYLOAD)
    assert predict(plan, peers, links, payload).busy_s == pytest.approx(exact.busy_s / 4)


def test_a_slow_local_network_is_found_to_be_the_bottleneck() -> None:
    peers, links = swarm(4, 4)
    slow = {
        peer: PeerLinks(
            near=said.near,
            up_bytes_per_s=said.up_bytes_per_s,
            down_bytes_per_s=said.down_bytes_per_s,
            lan_bytes_per_s=1 * MBIT,
        )
        for peer, said in links.items()
    }
    assert predict(planned((peers, slow)), peers, slow, PAYLOAD).link.startswith("lan")


def test_a_plan_of_ones_own_is_reasonable() -> None:
    peers, links = swarm(4, 4)
    assert is_reasonable(planned((peers, links)), peers, links, PAYLOAD)


def test_a_plan_that_puts_everything_on_one_root_is_not_reasonable() -> None:
    peers, links = swarm(1, 1, 1, 1, 1, 1, 1, 1)
    plan = planned((peers, links))
    greedy = Plan(plan.peers, plan.sites, (Tree(0, num_chunks(VALUES), 0, tuple(range(8))),))
    check_shape(greedy, VALUES, peers, "coordinator")
    assert not is_reasonable(greedy, peers, links, PAYLOAD)
    assert is_reasonable(greedy, peers, {}, PAYLOAD)  # who knows nothing judges nobody


def test_a_plan_that_ignores_where_peers_are_is_not_reasonable() -> None:
    peers, links = swarm(6, 6, 6, 6)
    assert not is_reasonable(make_butterfly(peers, (), links, PAYLOAD), peers, links, PAYLOAD)


def test_a_plan_that_claims_that_all_are_neighbours_is_not_reasonable() -> None:
    peers, links = swarm(6, 6, 6, 6)
    everyone = dict.fromkeys(peers, PeerLinks(near=tuple(peers)))
    plan = make_plan(peers, (), everyone, VALUES)
    assert len(plan.sites) == 1
    assert not is_reasonable(plan, peers, links, PAYLOAD)


def test_a_plan_without_some_peers_is_not_reasonable() -> None:
    peers, links = swarm(2, 2)
    assert not is_reasonable(planned(swarm(2, 1)), peers, links, PAYLOAD)


# --- planning itself ----------------------------------------------------------------------------


def test_the_same_knowledge_gives_the_same_plan() -> None:
    peers, links = swarm(3, 2, 4, up={0: 3e6, 1: 5e6, 2: 2e6})
    backwards = dict(reversed(links.items()))
    assert make_plan(peers[::-1], (), backwards, VALUES) == planned((peers, links))


def test_shares_without_a_solver_are_equal() -> None:
    found = equal([Crew((0, 1), (4,)), Crew((2, 3), ())])
    assert found.roots == dict.fromkeys(range(4), 0.25)
    assert found.owned == dict.fromkeys(range(4), 0.5)


def test_the_plan_of_sixty_four_peers_in_eight_sites_is_a_small_message() -> None:
    found = swarm(*[8] * 8, up=dict(enumerate([3e6, 5e6, 2e6, 9e6, 4e6, 4e6, 7e6, 1e6])))
    plan = planned(found)
    assert len(plan.trees) <= 128
    assert len(msgspec.msgpack.encode(plan)) < 16 * 1024
