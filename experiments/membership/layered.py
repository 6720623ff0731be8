"""Tables of thousands of simulated peers that share what all of them know.

A `Layered` is an `Entries` like the product's own, in two layers: a base that never changes and is
one object for all peers, and what this peer has seen change since.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from random import Random

from zoonet.crypto import PeerId
from zoonet.membership.gossip.entries import (
    NUM_BUCKETS,
    ByKey,
    Votes,
    Weights,
    add_to,
    bucket_of,
    index,
    take_from,
    unindex,
    weigh,
)
from zoonet.membership.gossip.item import Item


class Base:
    """What every peer knows when the simulation begins. Never changed."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = sorted(items)
        self.by_slot = {item.slot: item for item in self.items}
        self.by_id = {item.id: item for item in self.items}
        self.sums = array("Q", bytes(8 * NUM_BUCKETS))
        self.buckets: list[list[Item]] = [[] for _ in range(NUM_BUCKETS)]
        for item in self.items:
            add_to(self.sums, item.id)
            self.buckets[bucket_of(item.id)].append(item)
        self.ring = sorted(item.position for item in self.items if item.is_member)
        self.at = {item.position: item for item in self.items if item.is_member}
        self.by_key: ByKey = {}
        self.votes: Votes = {}
        self.weights: Weights = {}
        for item in self.items:
            if not item.is_member:
                index(item, self.by_key, self.votes)
                weigh(self.weights, item, item.num_bytes)
        self.num_bytes = sum(item.num_bytes for item in self.items)


EMPTY = Base(())


class Layered:
    """See `zoonet.membership.gossip.entries.Entries`."""

    def __init__(self, base: Base = EMPTY) -> None:
        self.sums = base.sums[:]
        self.num_bytes = base.num_bytes
        self.ring_version = 0
        self._base = base
        self._taken: set[int] = set()  # ids of the base that no longer stand
        self._taken_places: set[int] = set()  # ring positions of the base that no longer stand
        self._own: dict[bytes, Item] = {}
        self._own_ids: dict[int, Item] = {}
        self._ring: list[int] = []
        self._at: dict[int, Item] = {}
        self._by_expiry: list[Item] = []
        self._by_key: ByKey = {}
        self._votes: Votes = {}
        self._weights: Weights = {}  # of own items, less those of the base that were taken
        self._num_expired = 0  # of the base, from its first

    @property
    def num_members(self) -> int:
        return len(self._base.ring) - len(self._taken_places) + len(self._ring)

    def __len__(self) -> int:
        return len(self._base.by_slot) - len(self._taken) + len(self._own)

    def get(self, slot: bytes) -> Item | None:
        item = self._own.get(slot)
        if item is None:
            item = self._base.by_slot.get(slot)
            if item is not None and item.id in self._taken:
                return None
        return item

    def by_id(self, item_id: int) -> Item | None:
        item = self._own_ids.get(item_id)
        if item is None and item_id not in self._taken:
            return self._base.by_id.get(item_id)
        return item

    def put(self, item: Item) -> None:
        self._own[item.slot] = item
        self._own_ids[item.id] = item
        add_to(self.sums, item.id)
        self.num_bytes += item.num_bytes
        heapq.heappush(self._by_expiry, item)
        if item.is_member:
            insort(self._ring, item.position)
            self._at[item.position] = item
            self.ring_version += 1
        else:
            index(item, self._by_key, self._votes)
            weigh(self._weights, item, item.num_bytes)

    def remove(self, item: Item) -> None:
        take_from(self.sums, item.id)
        self.num_bytes -= item.num_bytes
        is_own = self._own.get(item.slot) is item
        if is_own:
            del self._own[item.slot]
            del self._own_ids[item.id]
        else:
            self._taken.add(item.id)
        if not item.is_member:
            weigh(self._weights, item, -item.num_bytes)
            if is_own:
                unindex(item, self._by_key, self._votes)
        else:
            self.ring_version += 1
            if is_own:
                del self._ring[bisect_left(self._ring, item.position)]
                del self._at[item.position]
            else:
                self._taken_places.add(item.position)

    def items(self) -> Iterator[Item]:
        yield from self._own.values()
        taken = self._taken
        yield from (item for item in self._base.items if item.id not in taken)

    def in_buckets(self, buckets: Collection[int]) -> Iterator[Item]:
        taken, chosen = self._taken, set(buckets)
        for bucket in chosen:
            yield from (item for item in self._base.buckets[bucket] if item.id not in taken)
        yield from (item for item in self._own.values() if bucket_of(item.id) in chosen)

    def under(self, key: str) -> tuple[Item, ...]:
        return self._standing(self._base.by_key.get(key, ())) + self._by_key.get(key, ())

    def shelves(self) -> Iterator[str]:
        yield from (key for key in {**self._base.by_key, **self._by_key} if self.under(key))

    def votes(self, subject: bytes) -> tuple[Item, ...]:
        return self._standing(self._base.votes.get(subject, ())) + self._votes.get(subject, ())

    def _standing(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(item for item in items if item.id not in self._taken)

    def weight(self, author: PeerId, *, is_vote: bool) -> int:
        slot = (author, is_vote)
        return self._base.weights.get(slot, 0) + self._weights.get(slot, 0)

    def after(self, position: int) -> Iterator[Item]:
        return self._walk(
            bisect_left(self._base.ring, position + 1), bisect_left(self._ring, position + 1), 1
        )

    def before(self, position: int) -> Iterator[Item]:
        return self._walk(
            bisect_left(self._base.ring, position) - 1, bisect_left(self._ring, position) - 1, -1
        )

    def _walk(self, base_index: int, own_index: int, step: int) -> Iterator[Item]:
        """Both rings merged in one direction, from these places once around."""
        base_ring, own_ring = self._base.ring, self._ring
        num_base, num_own = len(base_ring), len(own_ring)
        base_left, own_left = num_base, num_own
        while base_left or own_left:
            while base_left and base_ring[base_index % num_base] in self._taken_places:
                base_index += step
                base_left -= 1
            if not base_left and not own_left:
                return
            if base_left and own_left:
                # A lap counts: the rings wrap at their own ends.
                base_key = (base_index // num_base, base_ring[base_index % num_base])
                own_key = (own_index // num_own, own_ring[own_index % num_own])
                is_base = base_key < own_key if step > 0 else base_key > own_key
            else:
                is_base = bool(base_left)
            if is_base:
                yield self._base.at[base_ring[base_index % num_base]]
                base_index += step
                base_left -= 1
            else:
                yield self._at[own_ring[own_index % num_own]]
                own_index += step
                own_left -= 1

    def random_member(self, random: Random) -> Item:
        num_base = len(self._base.ring)
        while True:
            number = random.randrange(num_base + len(self._ring))
            if number >= num_base:
                return self._at[self._ring[number - num_base]]
            position = self._base.ring[number]
            if position not in self._taken_places:
                return self._base.at[position]

    def pop_expired(self, now: float) -> list[Item]:
        found = []
        while self._by_expiry and self._by_expiry[0].expires_at <= now:
            item = heapq.heappop(self._by_expiry)
            if self._own.get(item.slot) is item:
                found.append(item)
        items = self._base.items
        while self._num_expired < len(items) and items[self._num_expired].expires_at <= now:
            if items[self._num_expired].id not in self._taken:
                found.append(items[self._num_expired])
            self._num_expired += 1
        return found
