"""Tables of thousands of simulated peers that share what all of them know.

A `Layered` is an `Entries` like the product's own, in two layers: a base that never changes and is
one object for all peers, and what this peer has seen change since.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from random import Random

from zoonet.crypto import PeerId
from zoonet.membership.gossip.entries import (
    NUM_BUCKETS,
    Index,
    add_to,
    bucket_of,
    take_from,
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
        self.index = Index()
        for item in self.items:
            self.index.put(item)
        self.num_bytes = sum(item.num_bytes for item in self.items)


EMPTY = Base(())


class Layered:
    """See `zoonet.membership.gossip.entries.Entries`."""

    def __init__(self, base: Base = EMPTY) -> None:
        self.sums = base.sums[:]
        self.num_bytes = base.num_bytes
        self.ring_version = 0
        self._base = base
        self._below = base.index
        self._taken: set[int] = set()  # ids of the base that no longer stand
        self._taken_places: set[int] = set()  # ring positions of the base that no longer stand
        self._own: dict[bytes, Item] = {}
        self._own_ids: dict[int, Item] = {}
        self._index = Index()  # of own items; its weights less those of the base that were taken
        self._by_expiry: list[Item] = []
        self._num_expired = 0  # of the base, from its first

    @property
    def num_members(self) -> int:
        return len(self._below.ring) - len(self._taken_places) + len(self._index.ring)

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
        self.ring_version += item.is_member
        self._index.put(item)

    def remove(self, item: Item) -> None:
        take_from(self.sums, item.id)
        self.num_bytes -= item.num_bytes
        self.ring_version += item.is_member
        if self._own.get(item.slot) is item:
            del self._own[item.slot]
            del self._own_ids[item.id]
            self._index.remove(item)
            return
        self._taken.add(item.id)
        if item.is_member:
            self._taken_places.add(item.position)
        else:
            self._index.weigh(item, -item.num_bytes)

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
        own = self._index.by_key.get(key, ())
        return self._standing(self._below.by_key.get(key, ())) + own

    def shelves(self) -> Iterator[str]:
        keys = {**self._below.by_key, **self._index.by_key}
        yield from (key for key in keys if self.under(key))

    def votes(self, subject: bytes) -> tuple[Item, ...]:
        own = self._index.votes.get(subject, ())
        return self._standing(self._below.votes.get(subject, ())) + own

    def _standing(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(item for item in items if item.id not in self._taken)

    def weight(self, author: PeerId, *, is_vote: bool) -> int:
        return sum(i.weight(author, is_vote=is_vote) for i in (self._below, self._index))

    def after(self, position: int) -> Iterator[Item]:
        return self._walk(*self._places(position + 1), 1)

    def before(self, position: int) -> Iterator[Item]:
        below, own = self._places(position)
        return self._walk(below - 1, own - 1, -1)

    def _places(self, position: int) -> tuple[int, int]:
        return bisect_left(self._below.ring, position), bisect_left(self._index.ring, position)

    def _walk(self, base_index: int, own_index: int, step: int) -> Iterator[Item]:
        """Both rings merged in one direction, from these places once around."""
        base_ring, own_ring = self._below.ring, self._index.ring
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
                yield self._below.at[base_ring[base_index % num_base]]
                base_index += step
                base_left -= 1
            else:
                yield self._index.at[own_ring[own_index % num_own]]
                own_index += step
                own_left -= 1

    def random_member(self, random: Random) -> Item:
        num_base = len(self._below.ring)
        while True:
            number = random.randrange(num_base + len(self._index.ring))
            if number >= num_base:
                return self._index.at[self._index.ring[number - num_base]]
            position = self._below.ring[number]
            if position not in self._taken_places:
                return self._below.at[position]

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
