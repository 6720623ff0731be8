"""The simulation's tables behave like the product's, whatever happens to them."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from experiments.membership.layered import Base, Layered
from tests.contracts.networks import START
from tests.membership.gossip_makers import gone, job, member, people
from zoonet.membership.gossip import Entries, Item, PlainEntries

PEOPLE = people(14)
MEMBERS = [member(one, expires_at=START + 100 + n) for n, one in enumerate(PEOPLE)]
NEWER = [member(one, sequence=2, expires_at=START + 200 + n) for n, one in enumerate(PEOPLE)]
OTHERS = [job(one, n) for n, one in enumerate(PEOPLE[:5])]
OTHERS += [gone(PEOPLE[0], one.peer_id) for one in PEOPLE[3:6]]
OTHERS += [gone(PEOPLE[1], one.peer_id) for one in PEOPLE[3:6]]
ALL = MEMBERS + NEWER + OTHERS


def put(entries: Entries, item: Item) -> None:
    known = entries.get(item.slot)
    if known is not None:
        entries.remove(known)
    entries.put(item)


def picture(entries: Entries) -> object:
    return (
        len(entries),
        entries.num_members,
        entries.num_bytes,
        entries.sums.tolist(),
        {item.id for item in entries.items()},
        [[item.id for item in entries.after(probe)] for probe in (0, 2**63, 2**64 - 1)],
        [[item.id for item in entries.before(probe)] for probe in (0, 2**63, 2**64 - 1)],
        {item.id for item in entries.in_buckets(range(0, 256, 3))},
        {key: {item.id for item in entries.under(key)} for key in entries.shelves()},
        [{item.id for item in entries.votes(one.subject)} for one in MEMBERS],
        [entries.weight(one.peer_id, is_vote=bool(vote)) for one in PEOPLE for vote in (0, 1)],
        [entries.by_id(item.id) is None for item in ALL],
        [entries.get(item.slot) is None for item in ALL],
    )


@given(
    base=st.sets(st.integers(0, len(PEOPLE) - 1)),
    base_others=st.sets(st.integers(0, len(OTHERS) - 1)),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, len(ALL) - 1)), max_size=30),
    expire=st.integers(90, 220),
)
def test_layered_entries_equal_plain_ones(
    base: set[int], base_others: set[int], steps: list[tuple[bool, int]], expire: int
) -> None:
    begin = [MEMBERS[number] for number in base] + [OTHERS[number] for number in base_others]
    layered, plain = Layered(Base(begin)), PlainEntries()
    for item in begin:
        plain.put(item)
    for is_put, number in steps:
        item = ALL[number]
        for entries in (layered, plain):
            if is_put:
                put(entries, item)
            elif (known := entries.by_id(item.id)) is not None:
                entries.remove(known)
    assert picture(layered) == picture(plain)
    gone_by = [{item.id for item in e.pop_expired(START + expire)} for e in (layered, plain)]
    assert gone_by[0] == gone_by[1]


def test_members_are_drawn_uniformly_over_both_layers() -> None:
    layered = Layered(Base(MEMBERS[:7]))
    for item in MEMBERS[7:]:
        layered.put(item)
    layered.remove(MEMBERS[0])
    random = Random(1)
    drawn = [layered.random_member(random).id for _ in range(2600)]
    counts = [drawn.count(item.id) for item in MEMBERS]
    assert counts[0] == 0
    assert all(140 < count < 260 for count in counts[1:])
