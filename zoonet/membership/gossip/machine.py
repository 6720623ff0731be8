"""One peer's part in gossip as a state machine: (state, event, time, seed) -> effects. Pure.

Events are a tick, a question, an answer, a call that failed, a record of our own. Effects are
calls to make and records to sign; whoever drives the machine carries them out and reports back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

from zoonet.crypto import PeerId
from zoonet.membership.gossip.config import GossipConfig
from zoonet.membership.gossip.entries import Entries
from zoonet.membership.gossip.item import Item, member_key
from zoonet.membership.gossip.messages import (
    MAX_HAVE,
    MAX_IDS,
    MAX_NEWS,
    MAX_NEWS_BYTES,
    MAX_PAGE_BYTES,
    MAX_WANT,
    Ask,
    Told,
)
from zoonet.membership.gossip.neighbours import MAX_CONTACTS, Neighbours
from zoonet.membership.gossip.table import Table

PAGE_IDS: Final = 400  # of one request, so that an answer stays below MAX_PAGE_BYTES
MAX_PAGES: Final = 4  # fetched at once
MAX_JOIN_PAGES: Final = 64  # the same of a newcomer, from each contact
MAX_HOT: Final = 2048
RECONCILE_MEMBERS: Final = 2000  # up to which tables are compared every `reconcile_s`
ABSENCE_S: Final = 300.0  # without a tick or any answer: a laptop that slept, or was cut off


@dataclass(frozen=True, slots=True)
class Call:
    """Ask a peer, and report its answer or that there was none."""

    peer_id: PeerId
    ask: Ask
    share: int = -1  # of a newcomer's first calls: which part of the table it takes from this peer


@dataclass(frozen=True, slots=True)
class Renew:
    """Sign our own record again and hand it to `publish`."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """Sign that a peer is gone, until its record would have run out, and hand it to `publish`."""

    accused: Item


Effect: TypeAlias = Call | Renew | Accuse


class Machine:
    """What one peer knows and does. `is_watcher` False: it holds no record and watches nobody."""

    def __init__(
        self,
        peer_id: PeerId,
        config: GossipConfig,
        *,
        seed: int,
        is_watcher: bool = True,
        entries: Entries | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.config = config
        self.table = Table(peer_id, config, seed=seed, entries=entries)
        self.is_complete = entries is not None  # holds what its contacts held when it came
        self.has_tried = False  # to join, in vain
        self._is_watcher = is_watcher
        self._random = Random(seed + 1)
        self.neighbours = self._new_neighbours()
        self._accused: dict[PeerId, int] = {}  # by us, as of this sequence
        self._hot: dict[int, Item] = {}  # what we learned lately, the oldest first
        self._hot_until: deque[tuple[float, int]] = deque()
        self._fresh: list[Item] = []  # of our own, that nobody has been told of yet
        self._num_pending = 0  # a newcomer's calls under way
        self._reconcile_at = 0.0
        own = self.table.member(peer_id)
        self._renew_at = 0.0 if own is None else self._renewal(own)
        self._refute_at = 0.0
        self._ticked_at = math.inf
        self._unanswered_since = math.inf  # the first call that failed, since the last answer
        self._seed = seed

    # Events.

    def meet(self, peer_id: PeerId) -> None:
        """A peer was met elsewhere: the way in of a newcomer, and between two swarms."""
        self.neighbours.meet(peer_id)

    def _new_neighbours(self) -> Neighbours:
        return Neighbours(self.table, self.config, self._random, is_watcher=self._is_watcher)

    def join(self, now: float) -> list[Effect]:
        """Ask peers met elsewhere for the ids of all that they hold."""
        num = min(self.config.num_contacts, len(self.neighbours.contacts))
        if num == 0:
            return []
        chosen = self._random.sample(self.neighbours.contacts, num)
        self._num_pending = num
        self._reconcile_at = now + self.config.reconcile_s
        news = self._own_records()
        return [
            Call(peer_id, Ask(have=(), sums=self.table.sums(), news=news), share=share)
            for share, peer_id in enumerate(chosen)
        ]

    def publish(self, item: Item, now: float) -> list[Effect]:
        """A record of our own, or one to be told again: tell neighbours and the key's keepers."""
        if item.is_member and item.author == self.peer_id:
            self._renew_at = self._renewal(item)
        self.neighbours.look_around(now)
        if not self._believe(item, now):
            return []
        neighbours = dict.fromkeys((*self.neighbours.all(), *self.neighbours.keepers(item.key)))
        if not neighbours:
            self._fresh.append(item)  # for the first that there will be
            return []
        ask = Ask(have=tuple(self._hot), news=(item,))
        return [Call(peer_id, ask) for peer_id in neighbours]

    def tick(self, now: float) -> list[Effect]:
        """Time passes: call the next neighbour, renew what runs out."""
        if self.table.num_members <= 1:
            self._unanswered_since = math.inf  # alone, not cut off
        if now - min(self._ticked_at, self._unanswered_since) > ABSENCE_S:
            self._start_over(now)
        self._ticked_at = now
        self.table.expire(now)
        self._cool(now)
        self.neighbours.look_around(now)
        effects: list[Effect] = []
        if self._is_watcher and now >= self._renew_at:
            self._renew_at = now + self.config.refute_s  # until it is signed
            effects.append(Renew())
        if not self.is_complete and self._num_pending == 0:
            effects += self.join(now)
        if self._num_pending:  # the table comes first
            return effects
        targets = self.neighbours.next_targets()
        return effects + [Call(peer, self._exchange(peer, ids, now)) for peer, ids in targets]

    def on_ask(self, caller: PeerId, ask: Ask, now: float) -> tuple[Told, list[Effect]]:
        """A peer asks: what to answer, and what else to do."""
        self.neighbours.heard(caller)
        effects = self._take(ask.news, now)
        if ask.sums is not None:
            effects += self._present(caller, ask)
        news: list[Item] = []
        for item_id in ask.want[:MAX_WANT]:
            item = self.table.by_id(item_id)
            if item is not None:
                news.append(item)
        for key in ask.find:
            news += self.table.find(key)
        if ask.is_exchange:
            self.neighbours.note_offers(caller, ask.have)
            known = set(ask.have)
            known.update(item.id for item in ask.news)
            news += [item for item_id, item in self._hot.items() if item_id not in known]
        buckets: list[int] = []
        ids: list[int] = []
        if ask.sums is not None:
            buckets = self.table.differing(ask.sums)
            ids = [item.id for item in self.table.in_buckets(buckets)][:MAX_IDS]
        most = MAX_PAGE_BYTES if ask.sums is None else MAX_NEWS_BYTES  # the ids need room, too
        return Told(tuple(buckets), tuple(ids), _within(news, most)), effects

    def on_told(self, call: Call, told: Told, now: float) -> list[Effect]:
        """A peer has answered."""
        self.neighbours.answered(call.peer_id)
        self._unanswered_since = math.inf
        effects = self._take(told.news, now)
        if call.share >= 0:
            self._num_pending -= 1
        self._keep_found(call.peer_id)
        if call.ask.sums is not None:
            effects += self._even_out(call, told)
            if call.share < 0 and len(effects) < 2:  # few differences, if any
                self.is_complete = True
        if call.share >= 0 and self._num_pending == 0:
            self.is_complete = True
            self._reconcile_at = 0.0  # soon, with another: did the contacts keep anything back?
            effects += self._introduce(now)
        return effects

    def on_failure(self, call: Call, now: float) -> list[Effect]:
        """A peer did not answer."""
        self._unanswered_since = min(self._unanswered_since, now)
        if call.share >= 0:
            self._num_pending -= 1
            self.has_tried = self.has_tried or self._num_pending == 0
            if self._num_pending == 0 and self.table.num_members > 1:
                self.is_complete = True  # the rest comes by reconciling
        self._fresh.extend(
            item for item in call.ask.news if item.id in self._hot and item not in self._fresh
        )
        return self._accuse(call.peer_id) if self.neighbours.missed(call.peer_id) else []

    def leave(self) -> list[PeerId]:
        """Whom to tell that this peer goes."""
        return self.neighbours.all()

    # Within.

    def _start_over(self, now: float) -> None:
        """After a long absence: who died meanwhile must not be brought back by us. Join anew.

        Jobs stay: the newest word of their authors stands, and nobody else may be left to tell it.
        """
        known = [item.author for item in self.table.members() if item.author != self.peer_id]
        self._random.shuffle(known)
        self._seed += 1
        jobs = self.table.jobs()
        self.table = Table(self.peer_id, self.config, seed=self._seed)
        for item in jobs:
            self.table.add(item, now)
        self.neighbours = self._new_neighbours()
        self._fresh.clear()
        self._hot.clear()
        self._hot_until.clear()
        for peer_id in known[:MAX_CONTACTS]:
            self.meet(peer_id)
        self.is_complete = False
        self._num_pending = 0
        self._renew_at = 0.0  # others take us for dead
        self._unanswered_since = math.inf

    def _renewal(self, own: Item) -> float:
        """When to sign our record again; not everyone at once."""
        left = self.config.renew_fraction * self._random.uniform(0.7, 1.3)
        return own.expires_at - left * self.config.lifetime_s

    def _own_records(self) -> tuple[Item, ...]:
        own = self.table.member(self.peer_id)
        return (own,) if own is not None else ()

    def _believe(self, item: Item, now: float) -> bool:
        """Take an item into the table and among the news."""
        if not self.table.add(item, now):
            return False
        self._hot[item.id] = item
        self._hot_until.append((now + self.config.hot_s, item.id))
        if len(self._hot) > MAX_HOT:
            self._hot.pop(next(iter(self._hot)))
        return True

    def _take(self, items: Sequence[Item], now: float) -> list[Effect]:
        """Believe what others brought; answer accusations of ourselves."""
        effects: list[Effect] = []
        is_bulk = len(items) > MAX_NEWS  # it spreads by reconciling: see `_even_out`
        for item in items:
            if is_bulk:
                self.table.add(item, now)
            elif self._believe(item, now) and item.subject and not item.is_member:
                effects += self._refute(item, now)
        return effects

    def _refute(self, gone: Item, now: float) -> list[Effect]:
        own = self.table.member(self.peer_id)
        is_meant = own is not None and own.subject == gone.subject
        if not is_meant or gone.author == self.peer_id or now < self._refute_at:
            return []
        self._refute_at = now + self.config.refute_s
        return [Renew()]

    def _cool(self, now: float) -> None:
        while self._hot_until and self._hot_until[0][0] <= now:
            self._hot.pop(self._hot_until.popleft()[1], None)
        self._fresh = [item for item in self._fresh if item.id in self._hot]
        while self.table.lost and self.table.lost[0].expires_at <= now:
            self.table.lost.popleft()

    def _present(self, caller: PeerId, ask: Ask) -> list[Effect]:
        """A newcomer's first question: tell its keepers, whom it cannot know yet, that it is here.

        Then it is found from the first second on, wherever the news have come.
        """
        if any(ask.have) or not any(item.author == caller for item in ask.news):
            return []
        told = Ask(is_exchange=False, news=ask.news[:1])
        keepers = self.neighbours.keepers(member_key(caller))
        return [Call(peer_id, told) for peer_id in keepers if peer_id != caller]

    def _introduce(self, now: float) -> list[Effect]:
        """A newcomer that is complete tells its neighbours of itself."""
        self.neighbours.look_around(now)
        news = self._own_records()
        if not news:
            return []
        self._fresh = [item for item in self._fresh if item is not news[0]]
        ask = Ask(have=tuple(self._hot)[-MAX_HAVE:], news=news)
        told = dict.fromkeys((*self.neighbours.all(), *self.neighbours.keepers(news[0].key)))
        return [Call(peer_id, ask) for peer_id in told]

    def _exchange(self, target: PeerId, want: tuple[int, ...], now: float) -> Ask:
        sums = None
        if self.table.member(target) is None:  # it may belong to another swarm
            sums = self.table.sums()
        elif now >= self._reconcile_at:
            self._reconcile_at = now + self._reconcile_pause_s()
            sums = self.table.sums()
        news = _within(self._fresh, MAX_NEWS_BYTES)[:MAX_NEWS]
        self._fresh = self._fresh[len(news) :]
        told = {item.id for item in news}
        have = [item_id for item_id in self._hot if item_id not in told]
        return Ask(have=tuple(have[-MAX_HAVE:]), sums=sums, want=want, news=news)

    def _reconcile_pause_s(self) -> float:
        """The more peers, the more is always on its way and differs: compare more rarely."""
        scale = max(1.0, self.table.num_members / RECONCILE_MEMBERS)
        return self.config.reconcile_s * scale * self._random.uniform(0.8, 1.2)

    def _even_out(self, call: Call, told: Told) -> list[Effect]:
        """Fetch what only the other has, hand over what only we have."""
        theirs = set(told.ids)
        lacking = [item_id for item_id in told.ids if self.table.lacks(item_id)]
        if call.share >= 0:  # a newcomer takes a part of the table from each of its contacts
            num = min(self.config.num_contacts, max(1, len(self.neighbours.contacts)))
            lacking = [item_id for item_id in lacking if item_id % num == call.share % num]
        surplus = [item for item in self.table.in_buckets(told.buckets) if item.id not in theirs]
        if call.share < 0 and max(len(lacking), len(surplus)) > MAX_NEWS:
            self._reconcile_at = 0.0  # two swarms have met: pass it on at the pace of ticks
        news = _within(surplus, MAX_NEWS_BYTES)[:MAX_NEWS]
        most = (MAX_JOIN_PAGES if call.share >= 0 else MAX_PAGES) * PAGE_IDS
        num_ids = min(len(lacking), most)  # a liar may offer any number
        pages = [lacking[start : start + PAGE_IDS] for start in range(0, num_ids, PAGE_IDS)]
        if not pages and news:
            pages = [[]]
        effects: list[Effect] = []
        for number, page in enumerate(pages):
            ask = Ask(is_exchange=False, want=tuple(page), news=news if number == 0 else ())
            if call.share >= 0:
                self._num_pending += 1
            effects.append(Call(call.peer_id, ask, share=call.share))
        return effects

    def _keep_found(self, peer_id: PeerId) -> None:
        """A peer that was taken for dead has answered: stay in touch until it is listed again."""
        for item in list(self.table.lost):
            if item.author == peer_id:
                self.table.lost.remove(item)
                self.meet(peer_id)
                self._reconcile_at = 0.0

    def _accuse(self, peer_id: PeerId) -> list[Effect]:
        accused = self.table.member(peer_id)
        if accused is None or peer_id not in self.neighbours.watched:
            return []
        seq = accused.record.sequence
        if self._accused.get(peer_id) == seq:
            return []
        self._accused[peer_id] = seq
        if len(self._accused) > MAX_CONTACTS:
            del self._accused[next(iter(self._accused))]
        return [Accuse(accused)]


def _within(items: Sequence[Item], max_bytes: int) -> tuple[Item, ...]:
    """The first items that together have at most so many bytes."""
    total = 0
    for number, item in enumerate(items):
        total += item.num_bytes
        if total > max_bytes:
            return tuple(items[:number])
    return tuple(items)
