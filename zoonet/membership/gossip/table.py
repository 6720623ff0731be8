"""Which records a peer believes: the newest of each slot, within bounds that nobody can outshout.

Pure: time comes in, nothing goes out. Records come in verified; this decides which ones stay.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Final

from zoonet.crypto import PeerId, sha256
from zoonet.membership.gossip.config import GossipConfig
from zoonet.membership.gossip.entries import Entries, PlainEntries
from zoonet.membership.gossip.item import (
    GOSSIPED,
    Item,
    MemberRecord,
    member_key,
    slot_of,
    subject_of,
)
from zoonet.records import JobRecord

NUM_LOST: Final = 32  # peers taken for dead that are tried again: a split heals by them
EVICTION_SAMPLE: Final = 16
MAX_REFUSED_IDS: Final = 8192


class Table:
    """The records that one peer holds. `peer_id` is its own: no verdict takes its record away."""

    def __init__(
        self, peer_id: PeerId, config: GossipConfig, *, seed: int, entries: Entries | None = None
    ) -> None:
        """Start empty, or with `entries`, which then belong to this table."""
        self.peer_id = peer_id
        self.refusals: Counter[str] = Counter()  # by reason
        self.lost: deque[Item] = deque(maxlen=NUM_LOST)
        self._config = config
        self._limits = config.limits
        self._entries: Entries = entries if entries is not None else PlainEntries()
        self._random = Random(seed)
        self._salt = self._random.randbytes(16)
        self._refused_ids: dict[int, None] = {}
        self._suspects: set[bytes] = set()  # accused, but not by enough yet

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_members(self) -> int:
        """Peers that are there, this one among them."""
        return self._entries.num_members

    @property
    def num_bytes(self) -> int:
        """Bytes of all records held."""
        return self._entries.num_bytes

    @property
    def ring_version(self) -> int:
        """Changes whenever a member comes or goes."""
        return self._entries.ring_version

    # Reading.

    def member(self, peer_id: PeerId) -> Item | None:
        """A peer's record."""
        return self._entries.get(slot_of(peer_id, MemberRecord.KIND, member_key(peer_id)))

    def members(self) -> Iterator[Item]:
        """Every member's record, in the order of the ring."""
        return self._entries.after(0)

    def find(self, key: str) -> list[Item]:
        """The records under a key, in the order of their authors."""
        kind, _, name = key.partition("/")
        if kind == "member":
            item = self.member(PeerId(name))
            return [item] if item is not None else []
        return sorted(self._entries.under(key), key=lambda item: item.author)

    def jobs(self) -> list[Item]:
        """The records of all jobs, cancelled ones too."""
        return [
            item
            for key in self._entries.shelves()
            for item in self._entries.under(key)
            if isinstance(item.record.body, JobRecord)
        ]

    def by_id(self, item_id: int) -> Item | None:
        """The record of that id."""
        return self._entries.by_id(item_id)

    def lacks(self, item_id: int) -> bool:
        """Whether a record of that id is worth asking for."""
        return self._entries.by_id(item_id) is None and item_id not in self._refused_ids

    def after(self, position: int) -> Iterator[Item]:
        """Members behind a place on the ring."""
        return self._entries.after(position)

    def watched_by(self, position: int, num: int) -> list[Item]:
        """The other members just before a place on the ring."""
        others = (m for m in self._entries.before(position) if m.author != self.peer_id)
        return list(islice(others, num))

    def random_member(self, random: Random) -> Item | None:
        """A member other than this peer, drawn uniformly; None where there is no other."""
        for _ in range(8):
            if self._entries.num_members == 0:
                return None
            item = self._entries.random_member(random)
            if item.author != self.peer_id:
                return item
        return None

    def sums(self) -> array[int]:
        """A copy of the bucket sums."""
        return self._entries.sums[:]

    def differing(self, sums: Sequence[int]) -> list[int]:
        """The buckets whose sums are others than these."""
        own = self._entries.sums
        return [bucket for bucket in range(len(own)) if own[bucket] != sums[bucket]]

    def in_buckets(self, buckets: Collection[int]) -> Iterator[Item]:
        """The records of these buckets."""
        return self._entries.in_buckets(buckets)

    # Writing.

    def add(self, item: Item, now: float) -> bool:
        """Take a verified record in; False where it is known, older, or not admitted.

        What is not admitted is counted in `refusals` and not asked for again.
        """
        if self._entries.by_id(item.id) is not None:
            return False
        known = self._entries.get(item.slot)
        reason = self._misfit(item, known, now)
        if reason:
            self._refuse(item, reason)
            return False
        if known is not None:
            self._entries.remove(known)
        self._entries.put(item)
        if item.is_member:
            self._forget_older_accusations(item)
        if item.subject:
            self._judge(item.subject)
        self._make_room(item)
        return True

    def expire(self, now: float) -> None:
        """Let go of what has run out, and of suspects against whom the jury has grown."""
        for item in self._entries.pop_expired(now):
            self._entries.remove(item)
        for subject in list(self._suspects):
            self._judge(subject)

    def is_accused(self, item: Item) -> bool:
        """Whether a verdict stands against a member, or its own goodbye."""
        seq = item.record.sequence
        accusers = set()
        for vote in self._entries.votes(item.subject):
            if vote.author == item.author and vote.record.body.seq >= seq:
                return True  # a goodbye
            if vote.record.body.seq == seq:
                accusers.add(vote.author)
        if not accusers:
            return False
        jury = {member.author for member in islice(self._near(item), self._config.jury)}
        needed = self._config.quorum if len(jury) > self._config.quorum else 1
        return len(accusers & jury) >= needed

    def is_suspected(self, peer_id: PeerId) -> bool:
        """Whether anybody, or the peer itself, says that it is gone."""
        return bool(self._entries.votes(subject_of(peer_id)))

    def _near(self, item: Item) -> Iterator[Item]:
        return (m for m in self._entries.after(item.position) if m.author != item.author)

    def _misfit(self, item: Item, known: Item | None, now: float) -> str:
        """Why an item is not admitted, or ""."""
        if item.expires_at <= now:
            return "expired"
        if item.record.body.KIND not in GOSSIPED:
            return "unknown-kind"
        if known is not None:
            if item.record.sequence < known.record.sequence:
                return "replayed"
            # Two records with one number: all peers keep the same one, so that tables agree.
            if item.record.sequence == known.record.sequence and item.id > known.id:
                return "equivocation"
        if item.is_member:
            return self._member_misfit(item, known)
        return self._excess(item, known)

    def _member_misfit(self, item: Item, known: Item | None) -> str:
        if item.author != self.peer_id and self.is_accused(item):
            return "gone"
        if known is None:
            there = next(self._entries.after(item.position - 1), None)
            if there is not None and there.position == item.position:
                return "misplaced"  # nobody comes upon another's place by chance
        return ""

    def _excess(self, item: Item, known: Item | None) -> str:
        """Why an author may not have one more record, or ""."""
        freed = known.num_bytes if known is not None else 0
        if item.subject and self._is_settled(item):
            return "settled"
        held = self._entries.weight(item.author, is_vote=bool(item.subject))
        most = self._limits.max_author_bytes
        if item.subject:
            most = self._limits.max_accusation_bytes
        return "excess" if held + item.num_bytes - freed > most else ""

    def _is_settled(self, gone: Item) -> bool:
        """Whether the accused has signed a newer record since: its word stands."""
        accused = self._member_at(gone.subject)
        return accused is not None and accused.record.sequence > gone.record.body.seq

    def _member_at(self, subject: bytes) -> Item | None:
        """The member of that short name: a ring is searched, since it names nobody in full."""
        position = int.from_bytes(subject[:8], "big")
        found = next(self._entries.after(position - 1), None)
        return found if found is not None and found.subject == subject else None

    def _judge(self, subject: bytes) -> None:
        """Take a member off where the accusations suffice."""
        self._suspects.discard(subject)
        votes = self._entries.votes(subject)
        accused = self._member_at(subject) if votes else None
        if accused is None or accused.author == self.peer_id:
            return
        if not self.is_accused(accused):
            self._suspects.add(subject)
            return
        self._entries.remove(accused)
        if all(vote.author != accused.author for vote in votes):
            self.lost.append(accused)  # no goodbye: it may only have been cut off

    def _forget_older_accusations(self, member: Item) -> None:
        for vote in self._entries.votes(member.subject):
            if vote.record.body.seq < member.record.sequence:
                self._entries.remove(vote)

    def _refuse(self, item: Item, reason: str) -> None:
        self.refusals[reason] += 1
        self._refused_ids[item.id] = None
        if len(self._refused_ids) > MAX_REFUSED_IDS:
            del self._refused_ids[next(iter(self._refused_ids))]

    def _make_room(self, newest: Item) -> None:
        """Past the bounds: keep a random sample of authors, which no number of records biases."""
        while (
            len(self._entries) > self._limits.max_records
            or self._entries.num_bytes > self._limits.max_bytes
        ):
            sample = [newest, *self._sample()]
            others = [item for item in sample if item.author != self.peer_id]
            if not others:
                return
            loser = max(others, key=self._rank)
            self._entries.remove(loser)
            self._refuse(loser, "full")
            if self._entries.by_id(newest.id) is None:
                return

    def _sample(self) -> list[Item]:
        start = self._random.randrange(len(self._entries.sums))
        buckets = [(start + step) % len(self._entries.sums) for step in range(8)]
        return list(islice(self.in_buckets(buckets), EVICTION_SAMPLE))

    def _rank(self, item: Item) -> bytes:
        return sha256(self._salt, item.author.encode())
