"""Whom a peer talks to: ring predecessors that it watches, random partners, whoever has news."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final

from zoonet.crypto import PeerId
from zoonet.membership.gossip.config import GossipConfig
from zoonet.membership.gossip.item import Item, key_position, subject_of
from zoonet.membership.gossip.messages import MAX_WANT
from zoonet.membership.gossip.table import Table

MAX_CONTACTS: Final = 64
MAX_MISSES: Final = 1024
MAX_OFFERS: Final = 256
LOST_SHARE: Final = 0.25  # of the rounds of calls that try a peer taken for dead

Target = tuple[PeerId, tuple[int, ...]]  # whom to call, and ids of records to ask it for


@dataclass(frozen=True, slots=True)
class _Misses:
    """Calls without an answer of one peer that count, and how many answers there were by then."""

    num: int
    num_answers: int


class Neighbours:
    """The choice of whom to call next. Pure: drawn from the table, a seeded random, and events."""

    def __init__(
        self, table: Table, config: GossipConfig, random: Random, *, is_watcher: bool
    ) -> None:
        self.contacts: list[PeerId] = []  # met outside of the table
        self.partners: list[PeerId] = []  # drawn from the whole table
        self.watched: list[PeerId] = []  # just before us on the ring
        self._table = table
        self._config = config
        self._random = random
        self._is_watcher = is_watcher
        self._position = int.from_bytes(subject_of(table.peer_id)[:8], "big")
        self._ring_version = -1
        self._rotate_at = 0.0
        self._round: list[PeerId] = []  # whom to call next
        self._misses: dict[PeerId, _Misses] = {}
        self._num_answers = 0  # of anybody to our calls
        self._waiting: set[PeerId] = set()  # for their answer to a tick's call
        self._offers: dict[int, PeerId] = {}  # ids of news that others have and we lack
        self._was_offer = False

    def meet(self, peer_id: PeerId) -> None:
        """A peer was met outside of the table."""
        if peer_id != self._table.peer_id and peer_id not in self.contacts:
            self.contacts.append(peer_id)
            del self.contacts[:-MAX_CONTACTS]

    def all(self) -> list[PeerId]:
        """Watched peers and partners."""
        return list(dict.fromkeys((*self.watched, *self.partners)))

    def look_around(self, now: float) -> None:
        """Keep the neighbours: those before us on the ring, and a random choice of all."""
        table, config = self._table, self._config
        if self._ring_version != table.ring_version:
            self._ring_version = table.ring_version
            if self._is_watcher:
                watched = table.watched_by(self._position, config.num_watched)
                self.watched = [item.author for item in watched]
            self.partners = [peer for peer in self.partners if table.member(peer)]
        if now >= self._rotate_at:
            # All peers at the same time would be a burst.
            self._rotate_at = now + config.rotate_s * self._random.uniform(0.5, 1.0)
            del self.partners[:1]
        for _ in range(2 * config.num_partners):
            if len(self.partners) >= config.num_partners:
                break
            item = table.random_member(self._random)
            if item is not None and item.author not in self.partners:
                self.partners.append(item.author)

    def next_targets(self) -> list[Target]:
        """Whom to call now; they count as waited for until `answered` or `missed`.

        Beside a suspect another peer is called: its answer shows that it is not we who are cut off.
        """
        suspect = self._suspect()
        other = self._best_offer() if suspect is None else None
        targets = [suspect, other or self._next_in_round(besides=suspect)]
        found = [target for target in targets if target is not None]
        self._waiting.update(peer_id for peer_id, _ in found)
        return found

    def answered(self, peer_id: PeerId) -> None:
        """A peer has answered a call."""
        self._num_answers += 1
        self._misses.pop(peer_id, None)
        self._waiting.discard(peer_id)

    def heard(self, peer_id: PeerId) -> None:
        """A peer has called."""
        self._misses.pop(peer_id, None)

    def missed(self, peer_id: PeerId) -> bool:
        """A peer did not answer; tell whether that was once too often.

        After the first time it counts only where anybody else has answered since the last that
        counted: a peer whose calls all fail has itself to suspect. Where nobody else is known,
        each counts.
        """
        self._waiting.discard(peer_id)
        if peer_id in self.contacts and self._table.num_members > 1:
            self.contacts.remove(peer_id)
        before = self._misses.pop(peer_id, _Misses(0, -1))
        is_alone = self._table.num_members <= 2
        if is_alone or self._num_answers > before.num_answers:
            before = _Misses(before.num + 1, self._num_answers)
        if before.num < self._config.num_misses:
            self._misses[peer_id] = before
            if len(self._misses) > MAX_MISSES:
                del self._misses[next(iter(self._misses))]
            return False
        if peer_id in self.partners:
            self.partners.remove(peer_id)
        return True

    def note_offers(self, caller: PeerId, have: Collection[int]) -> None:
        """A caller has news: where we lack them, our next call goes to it."""
        for item_id in have:
            if len(self._offers) < MAX_OFFERS and self._table.lacks(item_id):
                self._offers[item_id] = caller

    def keepers(self, key: str) -> list[PeerId]:
        """The peers that hear first of a key's records: those behind its place on the ring."""
        num = self._config.num_watched
        found = islice(self._table.after(key_position(key)), num + 1)
        return [item.author for item in found if item.author != self._table.peer_id][:num]

    def whom_to_ask(self, key: str, tried: Collection[PeerId]) -> list[PeerId]:
        """Three peers that may know what the table lacks: its keepers, then any others."""
        num = self._config.num_contacts
        chosen = [peer for peer in self.keepers(key) if peer not in tried]
        for _ in range(4 * num):
            item = self._table.random_member(self._random) if len(chosen) < num else None
            if item is None:
                break
            if item.author not in tried and item.author not in chosen:
                chosen.append(item.author)
        chosen += [peer for peer in self.contacts if peer not in tried and peer not in chosen]
        return chosen[:num]

    def _suspect(self) -> Target | None:
        """A watched peer that did not answer: is it dead?"""
        for peer_id in self.watched:
            if self._misses.get(peer_id) and peer_id not in self._waiting:
                return peer_id, ()
        return None

    def _best_offer(self) -> Target | None:
        """At most every other call follows an offer: a liar cannot have all of them."""
        offers = {i: p for i, p in self._offers.items() if self._table.lacks(i)}
        self._was_offer = bool(offers) and not self._was_offer
        self._offers = {} if self._was_offer else offers
        if not self._was_offer:
            return None
        peer_id = self._random.choice(list(offers.values()))
        if peer_id in self._waiting:
            return None
        return peer_id, tuple(i for i, p in offers.items() if p == peer_id)[:MAX_WANT]

    def _next_in_round(self, besides: Target | None) -> Target | None:
        if not self._round:
            self._round = self.all()
            self._random.shuffle(self._round)
            self._round += self._strangers()
        while self._round:
            peer_id = self._round.pop(0)
            if peer_id not in self._waiting and (besides is None or peer_id != besides[0]):
                return peer_id, ()
        return None

    def _strangers(self) -> list[PeerId]:
        """One that was taken for dead, and one met elsewhere that is not in the table."""
        lost: list[Item] = list(self._table.lost)
        chosen = []
        if lost and self._random.random() < LOST_SHARE:
            chosen.append(self._random.choice(lost).author)
        unknown = [peer for peer in self.contacts if self._table.member(peer) is None]
        if unknown:
            chosen.append(self._random.choice(unknown))
        return chosen
