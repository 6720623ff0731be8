"""A swarm of simulated peers: the product's own state machine under a virtual clock.

Links have delays, loss and a rate; peers come, go with a goodbye, or die. Records are really
signed. They are objects here, so each signature is checked once, and the checks that real peers
would have made are counted.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from experiments.membership import makers
from experiments.membership.layered import Base, Layered
from experiments.membership.watch import Watch
from experiments.membership.world import START, World
from zoonet.crypto import Identity, PeerId
from zoonet.membership.gossip import (
    Accuse,
    Ask,
    Call,
    Effect,
    Gone,
    Item,
    Machine,
    Renew,
    Told,
)
from zoonet.membership.gossip.messages import num_ask_bytes, num_told_bytes
from zoonet.records import verify

DEAD_DIAL_BYTES: Final = 300  # packets to a machine that does not answer


class SimPeer:
    """One simulated peer."""

    __slots__ = (
        "connected",
        "identity",
        "is_alive",
        "machine",
        "place",
        "received_bytes",
        "rtts_s",
        "sent_bytes",
        "started_at",
    )

    def __init__(self, identity: Identity, machine: Machine, place: tuple[float, float]) -> None:
        self.identity = identity
        self.machine = machine
        self.place = place
        self.is_alive = True
        self.connected: set[PeerId] = set()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.started_at = 0.0
        self.rtts_s: list[float] = []


@dataclass(frozen=True, slots=True)
class _Pending:
    """A call under way."""

    peer: SimPeer
    call: Call
    asked_at: float
    on_end: Callable[[], None] | None  # told when it was answered, or failed


class Simulation:
    """Runs a `World`; `run` returns its figures."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(world.seed)
        self.now = START
        self.peers: dict[PeerId, SimPeer] = {}
        self.alive: list[PeerId] = []
        self.watch = Watch(self)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._num_identities = 0
        self._num_jobs = world.num_jobs
        self.record_bytes = 0  # of a member

    # Setting up.

    def populate(self) -> None:
        """Begin with a swarm whose tables agree, with the accusations of the last hours in them."""
        world, items = self.world, []
        identities = [self._identity() for _ in range(world.num_peers)]
        life_s = world.gossip.lifetime_s
        for identity in identities:
            # Ages as in a swarm that has long been running: signed again at 40 % of its life.
            left_s = self.random.uniform(world.gossip.renew_fraction * 1.3, 1.0) * life_s
            items.append(self._member(identity, START + left_s))
        for number in range(world.num_jobs):
            job = self._job(identities[number % len(identities)], number)
            items.append(job)
            self.watch.job_keys.append(job.key)
        self.record_bytes = items[0].num_bytes
        items += self._old_accusations(identities)
        verify(items[0].record.raw, now=START)
        base = Base(items)
        for identity in identities:
            peer = self._add(identity, Layered(base))
            self.at(START + self.random.uniform(0, world.gossip.tick_s), self._tick, peer)

    def _old_accusations(self, identities: list[Identity]) -> list[Item]:
        """Two for each peer that died within a lifetime, one for each that said goodbye."""
        world, items = self.world, []
        life_s = world.gossip.lifetime_s
        num_gone = round(world.num_peers * world.churn_per_h * life_s / 3600 * 0.6)
        for number in range(num_gone):
            subject = self.random.randbytes(16)
            votes = 1 if number < num_gone * world.graceful else 2
            for accuser in self.random.sample(identities, votes):
                end = START + self.random.uniform(0.02, 1) * life_s * 0.6
                items.append(makers.signed(accuser, Gone(subject=subject, seq=number), 1, end))
        return items

    def _identity(self) -> Identity:
        self._num_identities += 1
        seed = random.Random((self.world.seed << 32) + self._num_identities)
        return Identity(seed.randbytes(32))

    def _add(self, identity: Identity, entries: Layered | None) -> SimPeer:
        machine = Machine(
            identity.peer_id,
            self.world.gossip,
            seed=self.random.getrandbits(48),
            entries=entries,
        )
        peer = SimPeer(identity, machine, (self.random.random(), self.random.random()))
        peer.started_at = self.now
        self.peers[identity.peer_id] = peer
        self.alive.append(identity.peer_id)
        return peer

    def _member(self, identity: Identity, expires_at: float) -> Item:
        number = self._num_identities
        return makers.member(identity, number, now=self.now, expires_at=expires_at)

    def _job(self, identity: Identity, number: int) -> Item:
        return makers.job(
            identity,
            f"language model {self.world.seed} {number}",
            now=self.now,
            sequence=int(self.now * 1000) + number,
            lifetime_s=7 * 86400.0,
        )

    # Time.

    def at(self, when: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time, in the order in which it was asked for."""
        self._number += 1
        heapq.heappush(self._events, (when, self._number, do, arguments))

    def run(self) -> dict[str, Any]:
        """Populate, warm up, measure."""
        world = self.world
        started = time.perf_counter()
        self.populate()
        set_up_s = time.perf_counter() - started
        self._plan_churn(START + 5.0, world.warmup_s + world.duration_s - 5.0)
        self._run_until(START + world.warmup_s)
        self.watch.begin()
        self._run_until(START + world.warmup_s + world.duration_s)
        wall_s = time.perf_counter() - started
        figures = self.watch.figures()
        return {**figures, "set_up_s": set_up_s, "wall_s": wall_s}

    def _run_until(self, end: float) -> None:
        events = self._events
        while events and events[0][0] <= end:
            self.now, _, do, arguments = heapq.heappop(events)
            do(*arguments)
        self.now = end

    def _plan_churn(self, begin: float, length_s: float) -> None:
        per_s = self.world.num_peers * self.world.churn_per_h / 3600
        for do, rate in (
            (self._depart, per_s),
            (self._arrive, per_s),
            (self._submit, self.world.new_jobs_per_h / 3600),
        ):
            when = begin
            while rate > 0 and (when := when + self.random.expovariate(rate)) < begin + length_s:
                self.at(when, do)

    # What peers do.

    def _tick(self, peer: SimPeer) -> None:
        if peer.is_alive:
            self._carry_out(peer, peer.machine.tick(self.now))
            pause_s = self.world.gossip.tick_s * self.random.uniform(0.8, 1.2)
            self.at(self.now + pause_s, self._tick, peer)

    def _carry_out(self, peer: SimPeer, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Call):
                self.call(peer, effect)
            elif isinstance(effect, Renew):
                item = self._member(peer.identity, self.now + self.world.gossip.lifetime_s)
                self._carry_out(peer, peer.machine.publish(item, self.now))
            elif isinstance(effect, Accuse):
                record = effect.accused.record
                gone = makers.gone(peer.identity, record, int(self.now * 1000))
                self._carry_out(peer, peer.machine.publish(gone, self.now))

    def call(self, peer: SimPeer, call: Call, on_end: Callable[[], None] | None = None) -> None:
        """Make a call: it is answered, or fails, in time; `on_end` is told either way."""
        world = self.world
        pending = _Pending(peer, call, self.now, on_end)
        num_bytes = num_ask_bytes(call.ask) + world.call_bytes // 2
        other = self.peers.get(call.peer_id)
        self.watch.called()
        if other is None or not other.is_alive:
            peer.sent_bytes += DEAD_DIAL_BYTES
            self._lose(pending)
            return
        self._connect(peer, other)
        peer.sent_bytes += num_bytes
        if self.random.random() < world.loss:
            self._lose(pending)
            return
        arrives = self.now + self._delay_s(peer, other) + num_bytes / world.rate_bytes_per_s
        self.at(arrives, self._answer, pending, other, num_bytes)

    def _connect(self, peer: SimPeer, other: SimPeer) -> None:
        if other.identity.peer_id in peer.connected:
            return
        peer.connected.add(other.identity.peer_id)
        other.connected.add(peer.identity.peer_id)
        for side in (peer, other):
            side.sent_bytes += self.world.connect_bytes // 2
            side.received_bytes += self.world.connect_bytes // 2

    def _answer(self, pending: _Pending, other: SimPeer, num_bytes: int) -> None:
        if not other.is_alive:
            self._lose(pending)
            return
        world, peer, ask = self.world, pending.peer, pending.call.ask
        other.received_bytes += num_bytes
        self.watch.received(other.machine.table, ask.news)
        told, effects = other.machine.on_ask(peer.identity.peer_id, ask, self.now)
        self._carry_out(other, effects)
        reply_bytes = num_told_bytes(told) + world.call_bytes // 2
        other.sent_bytes += reply_bytes
        if self.random.random() < world.loss:
            self._lose(pending)
            return
        arrives = self.now + self._delay_s(peer, other) + reply_bytes / world.rate_bytes_per_s
        self.at(arrives, self._told, pending, told, reply_bytes)

    def _told(self, pending: _Pending, told: Told, num_bytes: int) -> None:
        peer = pending.peer
        if not peer.is_alive:
            return
        peer.received_bytes += num_bytes
        self.watch.received(peer.machine.table, told.news)
        was_complete = peer.machine.is_complete
        if not was_complete:
            peer.rtts_s.append(self.now - pending.asked_at)
        self._carry_out(peer, peer.machine.on_told(pending.call, told, self.now))
        if peer.machine.is_complete and not was_complete:
            self.watch.completed(peer)
        if pending.on_end is not None:
            pending.on_end()

    def _lose(self, pending: _Pending) -> None:
        """Nothing comes back: the caller waits until its patience ends."""
        self.at(pending.asked_at + self.world.gossip.call_timeout_s, self._fail, pending)

    def _fail(self, pending: _Pending) -> None:
        peer = pending.peer
        if not peer.is_alive:
            return
        self.watch.failed()
        peer.connected.discard(pending.call.peer_id)
        self._carry_out(peer, peer.machine.on_failure(pending.call, self.now))
        if pending.on_end is not None:
            pending.on_end()

    def _delay_s(self, one: SimPeer, other: SimPeer) -> float:
        """One way."""
        return self.world.near_s + self.world.far_s * math.dist(one.place, other.place)

    # Churn.

    def _depart(self) -> None:
        peer = self.draw()
        peer_id = peer.identity.peer_id
        self.alive.remove(peer_id)
        is_graceful = self.random.random() < self.world.graceful
        own = peer.machine.table.member(peer_id)
        if is_graceful and own is not None:
            gone = makers.gone(peer.identity, own.record, int(self.now * 1000))
            for neighbour in peer.machine.leave():
                self.call(peer, Call(neighbour, Ask(is_exchange=False, news=(gone,))))
        peer.is_alive = False
        if not is_graceful:
            self.watch.died(peer_id)

    def _arrive(self) -> None:
        peer = self._add(self._identity(), None)
        for contact in self.random.sample(self.alive[:-1], self.world.gossip.num_contacts):
            peer.machine.meet(contact)
        item = self._member(peer.identity, self.now + self.world.gossip.lifetime_s)
        self._carry_out(peer, peer.machine.publish(item, self.now))
        self._tick(peer)
        self.watch.came(peer.identity.peer_id)

    def _submit(self) -> None:
        peer = self.draw()
        self._num_jobs += 1
        item = self._job(peer.identity, self._num_jobs)
        self._carry_out(peer, peer.machine.publish(item, self.now))
        self.watch.submitted(item.key)

    def draw(self) -> SimPeer:
        """A peer that lives, each as likely as the other."""
        return self.peers[self.random.choice(self.alive)]
