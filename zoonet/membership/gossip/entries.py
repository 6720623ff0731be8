"""Where a table keeps its items: by slot, by id, by place on the ring, by expiry. No rules here."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from random import Random
from typing import Final, Protocol, TypeVar

from zoonet.crypto import PeerId
from zoonet.membership.gossip.item import Item

NUM_BUCKETS: Final = 256
_BUCKET_SHIFT: Final = 56  # an id's first byte names its bucket
_MASK: Final = (1 << 64) - 1


class Entries(Protocol):
    """Storage of one table; a simulation shares most of it between thousands of tables."""

    sums: array[int]  # of each bucket: its ids added up, modulo 2**64
    num_bytes: int
    ring_version: int  # changes whenever a member comes or goes

    @property
    def num_members(self) -> int:
        """How many members there are."""
        ...

    def __len__(self) -> int: ...

    def get(self, slot: bytes) -> Item | None:
        """The item that stands in a slot."""
        ...

    def by_id(self, item_id: int) -> Item | None:
        """The item of that id."""
        ...

    def put(self, item: Item) -> None:
        """Add an item; its slot must be free."""
        ...

    def remove(self, item: Item) -> None:
        """Take out an item that is in."""
        ...

    def items(self) -> Iterator[Item]:
        """Every item, in no order."""
        ...

    def in_buckets(self, buckets: Collection[int]) -> Iterator[Item]:
        """The items whose ids begin with one of these bytes."""
        ...

    def under(self, key: str) -> tuple[Item, ...]:
        """The items under a key, without members and accusations."""
        ...

    def shelves(self) -> Iterator[str]:
        """Every key that `under` knows."""
        ...

    def votes(self, subject: bytes) -> tuple[Item, ...]:
        """The accusations and goodbyes about a peer."""
        ...

    def weight(self, author: PeerId, *, is_vote: bool) -> int:
        """Bytes of an author's accusations, or of its other items but its membership."""
        ...

    def after(self, position: int) -> Iterator[Item]:
        """Members clockwise behind a place on the ring, each once."""
        ...

    def before(self, position: int) -> Iterator[Item]:
        """Members counter-clockwise before a place on the ring, each once."""
        ...

    def random_member(self, random: Random) -> Item:
        """One of the members, each as likely as the other. There must be one."""
        ...

    def pop_expired(self, now: float) -> list[Item]:
        """Items whose time has passed; they are still to be removed."""
        ...


def bucket_of(item_id: int) -> int:
    """The bucket that an id falls into."""
    return item_id >> _BUCKET_SHIFT


def add_to(sums: array[int], item_id: int) -> None:
    """Count an id into its bucket's sum."""
    bucket = item_id >> _BUCKET_SHIFT
    sums[bucket] = (sums[bucket] + item_id) & _MASK


def take_from(sums: array[int], item_id: int) -> None:
    """Count an id out of its bucket's sum."""
    bucket = item_id >> _BUCKET_SHIFT
    sums[bucket] = (sums[bucket] - item_id) & _MASK


class Index:
    """Where items are found: by their place on the ring, by key, by whom they accuse."""

    def __init__(self) -> None:
        self.ring: list[int] = []  # places of the members, in order
        self.at: dict[int, Item] = {}
        self.by_key: dict[str, tuple[Item, ...]] = {}  # neither members nor accusations
        self.votes: dict[bytes, tuple[Item, ...]] = {}  # accusations and goodbyes
        self._weights: dict[tuple[PeerId, bool], int] = {}

    def put(self, item: Item) -> None:
        """Note an item."""
        if item.is_member:
            insort(self.ring, item.position)
            self.at[item.position] = item
            return
        if item.subject:
            self.votes[item.subject] = (*self.votes.get(item.subject, ()), item)
        else:
            self.by_key[item.key] = (*self.by_key.get(item.key, ()), item)
        self.weigh(item, item.num_bytes)

    def remove(self, item: Item) -> None:
        """Undo `put`."""
        if item.is_member:
            del self.ring[bisect_left(self.ring, item.position)]
            del self.at[item.position]
            return
        if item.subject:
            _take_off(self.votes, item.subject, item)
        else:
            _take_off(self.by_key, item.key, item)
        self.weigh(item, -item.num_bytes)

    def weigh(self, item: Item, num_bytes: int) -> None:
        """Count bytes of an item's author in, or out where there are fewer than none."""
        slot = (item.author, bool(item.subject))
        self._weights[slot] = self._weights.get(slot, 0) + num_bytes
        if self._weights[slot] == 0:
            del self._weights[slot]

    def weight(self, author: PeerId, *, is_vote: bool) -> int:
        """See `Entries.weight`."""
        return self._weights.get((author, is_vote), 0)


K = TypeVar("K", str, bytes)


def _take_off(shelves: dict[K, tuple[Item, ...]], name: K, item: Item) -> None:
    left = tuple(other for other in shelves[name] if other is not item)
    if left:
        shelves[name] = left
    else:
        del shelves[name]


class PlainEntries:
    """`Entries` in dictionaries."""

    def __init__(self) -> None:
        self.sums = array("Q", bytes(8 * NUM_BUCKETS))
        self.num_bytes = 0
        self.ring_version = 0
        self._by_slot: dict[bytes, Item] = {}
        self._buckets: list[dict[int, Item]] = [{} for _ in range(NUM_BUCKETS)]
        self._index = Index()
        self._by_expiry: list[Item] = []

    @property
    def num_members(self) -> int:
        return len(self._index.ring)

    def __len__(self) -> int:
        return len(self._by_slot)

    def get(self, slot: bytes) -> Item | None:
        return self._by_slot.get(slot)

    def by_id(self, item_id: int) -> Item | None:
        return self._buckets[item_id >> _BUCKET_SHIFT].get(item_id)

    def put(self, item: Item) -> None:
        self._by_slot[item.slot] = item
        self._buckets[item.id >> _BUCKET_SHIFT][item.id] = item
        add_to(self.sums, item.id)
        self.num_bytes += item.num_bytes
        heapq.heappush(self._by_expiry, item)
        if len(self._by_expiry) > 2 * len(self._by_slot) + 64:  # most have been replaced
            self._by_expiry = sorted(self._by_slot.values())
        self.ring_version += item.is_member
        self._index.put(item)

    def remove(self, item: Item) -> None:
        del self._by_slot[item.slot]
        del self._buckets[item.id >> _BUCKET_SHIFT][item.id]
        take_from(self.sums, item.id)
        self.num_bytes -= item.num_bytes
        self.ring_version += item.is_member
        self._index.remove(item)

    def items(self) -> Iterator[Item]:
        yield from self._by_slot.values()

    def in_buckets(self, buckets: Collection[int]) -> Iterator[Item]:
        for bucket in buckets:
            yield from self._buckets[bucket].values()

    def under(self, key: str) -> tuple[Item, ...]:
        return self._index.by_key.get(key, ())

    def shelves(self) -> Iterator[str]:
        yield from self._index.by_key

    def votes(self, subject: bytes) -> tuple[Item, ...]:
        return self._index.votes.get(subject, ())

    def weight(self, author: PeerId, *, is_vote: bool) -> int:
        return self._index.weight(author, is_vote=is_vote)

    def after(self, position: int) -> Iterator[Item]:
        start, ring = bisect_left(self._index.ring, position + 1), self._index.ring
        for offset in range(len(ring)):
            yield self._index.at[ring[(start + offset) % len(ring)]]

    def before(self, position: int) -> Iterator[Item]:
        start, ring = bisect_left(self._index.ring, position), self._index.ring
        for offset in range(1, len(ring) + 1):
            yield self._index.at[ring[(start - offset) % len(ring)]]

    def random_member(self, random: Random) -> Item:
        return self._index.at[self._index.ring[random.randrange(len(self._index.ring))]]

    def pop_expired(self, now: float) -> list[Item]:
        found = []
        while self._by_expiry and self._by_expiry[0].expires_at <= now:
            item = heapq.heappop(self._by_expiry)
            if self._by_slot.get(item.slot) is item:
                found.append(item)
        return found
