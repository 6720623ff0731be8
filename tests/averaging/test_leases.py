"""Which member trains which slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.makers import NAMES, peer, ready
from zoonet.averaging.leases import lease, local_steps, most_slots
from zoonet.averaging.messages import MAX_RANGES, Ready, Share
from zoonet.crypto import PeerId
from zoonet.ranges import Ranges, count, difference, normalise, overlaps, take

FREE: Ranges = ((0, 10_000),)
slot_sets = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=4).map(
    lambda found: normalise((start, start + size) for start, size in found)
)


def members(**given_ready: Ready) -> dict[PeerId, Ready]:
    return {peer(name): said for name, said in given_ready.items()}


def leases(shares: tuple[Share, ...]) -> dict[str, Ranges]:
    names = {peer(name): name for name in NAMES}
    return {names[share.peer]: share.slots for share in shares}


def test_equal_members_get_equal_leases_in_the_order_of_their_ids() -> None:
    found = lease(FREE, members(ada=ready(), bob=ready(), cyd=ready()), 10)
    assert [share.peer for share in found] == sorted(share.peer for share in found)
    assert [share.slots for share in found] == [((0, 10),), ((10, 20),), ((20, 30),)]


def test_leases_are_in_proportion_to_measured_speed() -> None:
    found = leases(lease(FREE, members(ada=ready(4.0), bob=ready(8.0), cyd=ready(1.0)), 8))
    assert {name: count(slots) for name, slots in found.items()} == {"ada": 8, "bob": 16, "cyd": 2}


def test_speeds_near_the_median_count_as_even() -> None:
    found = leases(lease(FREE, members(ada=ready(10.0), bob=ready(12.0), cyd=ready(8.0)), 10))
    assert {count(slots) for slots in found.values()} == {10}


def test_without_dynamic_steps_all_are_even() -> None:
    found = lease(FREE, members(ada=ready(1.0), bob=ready(99.0)), 10, is_dynamic=False)
    assert {count(share.slots) for share in found} == {10}


def test_an_absurd_claim_of_speed_does_not_touch_the_others() -> None:
    honest = members(ada=ready(10.0), bob=ready(11.0), cyd=ready(1e6))
    found = leases(lease(FREE, honest, 10))
    assert count(found["ada"]) == count(found["bob"]) == 10
    assert count(found["cyd"]) == most_slots(10) == 80


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=5), st.integers(1, 100))
def test_nobody_takes_less_than_one_step_or_more_than_eight_times_the_usual(
    speeds: list[float], inner_steps: int
) -> None:
    by_peer = {peer(name): speed for name, speed in zip(NAMES, speeds, strict=False)}
    for steps in local_steps(by_peer, inner_steps, is_dynamic=True).values():
        assert 1 <= steps <= most_slots(inner_steps)


def test_carried_work_is_kept_and_topped_up() -> None:
    found = leases(lease(FREE, members(ada=ready(leased=((90, 94),)), bob=ready()), 10))
    assert count(found["ada"]) == 10 and not difference(((90, 94),), found["ada"])
    assert not overlaps(found["ada"], found["bob"])


def test_carried_work_that_is_certified_meanwhile_is_not_kept() -> None:
    found = leases(lease(((50, 100),), members(ada=ready(leased=((48, 52),))), 10))
    assert found["ada"] == ((50, 60),)


def test_nobody_can_claim_the_whole_job_as_trained() -> None:
    found = leases(lease(FREE, members(ada=ready(leased=FREE), bob=ready()), 10))
    assert count(found["ada"]) == count(found["bob"]) == 10


def test_nobody_can_claim_work_in_more_pieces_than_a_plan_holds() -> None:
    crumbs = tuple((at, at + 1) for at in range(0, 9000, 2))
    found = lease(FREE, members(ada=ready(leased=crumbs), bob=ready()), 10_000)
    assert sum(len(share.slots) for share in found) <= MAX_RANGES
    assert not overlaps(found[0].slots, found[1].slots)


def test_leases_are_in_no_more_pieces_than_there_is_room_for() -> None:
    free = tuple((at, at + 1) for at in range(0, 200, 2))
    found = lease(free, members(ada=ready(), bob=ready()), 30, most_pieces=20)
    assert [len(one.slots) for one in found] == [10, 10]


def test_a_claim_on_slots_that_were_leased_to_another_fails() -> None:
    """Whatever their ids: the coordinator has seen to whom the slots were leased."""
    claim: Ranges = ((20, 24),)
    for honest, thief in (("ada", "bob"), ("bob", "ada")):
        both = members(**{honest: ready(leased=claim), thief: ready(leased=claim)})
        found = leases(lease(FREE, both, 10, known={peer(honest): ((20, 30),)}))
        assert not difference(claim, found[honest])
        assert not overlaps(claim, found[thief])


def test_of_two_who_merely_say_so_neither_keeps_the_slots() -> None:
    both = members(ada=ready(leased=((20, 24),)), bob=ready(leased=((22, 26),)))
    found = lease(FREE, both, 10)
    assert normalise(piece for share in found for piece in share.slots) == ((0, 20),)


def test_a_malformed_claim_is_passed_over() -> None:
    for claim in (((5, 3),), ((3, 5), (4, 9)), ((9_999, 10_001),)):
        assert leases(lease(FREE, members(ada=ready(leased=claim)), 10))["ada"] == ((0, 10),)


def test_the_end_of_the_job_is_shared_out_to_the_last_slot() -> None:
    found = leases(lease(((95, 100),), members(ada=ready(), bob=ready(), cyd=ready()), 10))
    assert sum(count(slots) for slots in found.values()) == 5
    assert sorted(count(slots) for slots in found.values()) == [1, 2, 2]


def test_with_nothing_left_leases_are_empty() -> None:
    assert [share.slots for share in lease((), members(ada=ready(), bob=ready()), 10)] == [(), ()]


@given(
    st.lists(st.tuples(st.floats(0, 100), slot_sets, slot_sets), min_size=1, max_size=5),
    slot_sets,
    st.integers(1, 60),
)
def test_no_slot_is_leased_twice_or_invented(
    said: list[tuple[float, Ranges, Ranges]], free: Ranges, inner_steps: int
) -> None:
    by_peer = {
        peer(name): ready(speed, carried)
        for name, (speed, carried, _) in zip(NAMES, said, strict=False)
    }
    known = {peer(name): seen for name, (_, _, seen) in zip(NAMES, said, strict=False)}
    found = lease(free, by_peer, inner_steps, known=known)
    slots = [piece for share in found for piece in share.slots]
    assert count(normalise(slots)) == sum(count(share.slots) for share in found)
    assert not difference(slots, free)
    wanted = local_steps(
        {one: by_peer[one].slots_per_s for one in by_peer}, inner_steps, is_dynamic=True
    )
    assert count(slots) >= min(count(free), sum(wanted.values())) or not take(free, 1)[0]
    assert all(count(share.slots) <= most_slots(inner_steps) for share in found)
