"""A swarm of simulated peers: the product's own state machine under a virtual clock.

Links have delays, loss and a rate; peers come, go with a goodbye, or die. Records are really
signed. They are objects here, so each signature is checked once, and the checks that real peers
would have made are counted.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import psutil

from experiments.membership.layered import Base, Layered
from experiments.membership.lookup import Lookup
from experiments.membership.world import Tally, World, percentile
from zoonet.blocks import cid_of
from zoonet.crypto import Identity, PeerId
from zoonet.membership.gossip import (
    Accuse,
    Ask,
    Call,
    Effect,
    Gone,
    Item,
    Machine,
    MemberRecord,
    Renew,
    member_key,
)
from zoonet.membership.gossip.item import subject_of
from zoonet.membership.gossip.messages import num_ask_bytes, num_told_bytes
from zoonet.records import Hardware, JobRecord, Signed, job_id_of, sign, verify

START: Final = 1_800_000_000.0
DEAD_DIAL_BYTES: Final = 300  # packets to a machine that does not answer
SPREAD_AT_S: Final = (1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 60)


class SimPeer:
    """One simulated peer."""

    __slots__ = (
        "connected",
        "identity",
        "is_alive",
        "joined_at",
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
        self.joined_at = -1.0
        self.rtts_s: list[float] = []


class Simulation:
    """Runs a `World`; `run` returns its figures."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random.Random(world.seed)
        self.now = START
        self.peers: dict[PeerId, SimPeer] = {}
        self.alive: list[PeerId] = []
        self.job_keys: list[str] = []
        self.tally = Tally()
        self.is_measuring = False
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._num_identities = 0
        self._num_jobs = world.num_jobs
        self._jobs_everywhere: set[str] = set()

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
            job = self._job(identities[number % len(identities)], number, START)
            items.append(job)
            self.job_keys.append(job.key)
        items += self._old_accusations(identities)
        verify(items[0].record.raw, now=START)
        base = Base(items)
        for identity in identities:
            peer = self._add(identity, Layered(base))
            peer.joined_at = START
            self._at(START + self.random.uniform(0, world.gossip.tick_s), self._tick, peer)

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
                items.append(_signed(accuser, Gone(subject=subject, seq=number), 1, end))
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
        peer_id = identity.peer_id
        body = MemberRecord(
            peer_id=peer_id,
            name=f"worker-{peer_id[-6:]}",
            roles=("worker",),
            addresses=(
                f"/ip4/203.0.113.{self._num_identities % 250}/tcp/31330/p2p/{peer_id}",
                f"/ip4/192.168.1.{self._num_identities % 250}/tcp/31330/p2p/{peer_id}",
            ),
            reachability="direct",
            hardware=Hardware(
                num_cpus=16,
                memory_bytes=64 * 10**9,
                num_gpus=1,
                gpu_name="NVIDIA GeForce RTX 4090",
                gpu_memory_bytes=24 * 10**9,
            ),
            version="0.1.0",
            started_at=START - 3600.0,
            jobs=(f"{self._num_identities:032x}",),
        )
        return _signed(identity, body, int(self.now * 1000), expires_at)

    def _job(self, identity: Identity, number: int, now: float) -> Item:
        spec_cid = cid_of(f"{self.world.seed} {number}".encode())
        body = JobRecord(
            job_id=job_id_of(identity.peer_id, spec_cid),
            name=f"language model {number}",
            task="causal_lm",
            spec_cid=spec_cid,
            num_parameters=124_000_000,
            num_tokens=10**10,
            min_peers=4,
            max_peers=64,
            budget_max=10**6,
            submitted_at=now,
        )
        return _signed(identity, body, int(now * 1000) + number, now + 7 * 86400.0)

    # Time.

    def _at(self, when: float, do: Callable[..., None], *arguments: Any) -> None:
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
        self._begin_to_measure()
        self._run_until(START + world.warmup_s + world.duration_s)
        wall_s = time.perf_counter() - started
        return self._figures(set_up_s, wall_s)

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
                self._at(when, do)

    def _begin_to_measure(self) -> None:
        self.is_measuring = True
        for peer in self.peers.values():
            peer.sent_bytes = peer.received_bytes = 0
        num = int(self.world.lookups_per_s * self.world.duration_s)
        for _ in range(num):
            self._at(self.now + self.random.uniform(0, self.world.duration_s - 5), self._look_up)
        for step in range(1, 6):
            self._at(self.now + step * self.world.duration_s / 6, self._sample_staleness)

    # What peers do.

    def _tick(self, peer: SimPeer) -> None:
        if peer.is_alive:
            self._carry_out(peer, peer.machine.tick(self.now))
            pause_s = self.world.gossip.tick_s * self.random.uniform(0.8, 1.2)
            self._at(self.now + pause_s, self._tick, peer)

    def _carry_out(self, peer: SimPeer, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Call):
                self.call(peer, effect)
            elif isinstance(effect, Renew):
                item = self._member(peer.identity, self.now + self.world.gossip.lifetime_s)
                self._carry_out(peer, peer.machine.publish(item, self.now))
            elif isinstance(effect, Accuse):
                record = effect.accused.record
                gone = _gone(peer.identity, record, int(self.now * 1000))
                self._carry_out(peer, peer.machine.publish(gone, self.now))

    def call(self, peer: SimPeer, call: Call, on_end: Callable[[], None] | None = None) -> None:
        """Make a call: it is answered, or fails, in time; `on_end` is told either way."""
        world, tally = self.world, self.tally
        other = self.peers.get(call.peer_id)
        num_bytes = num_ask_bytes(call.ask) + world.call_bytes // 2
        if other is None or not other.is_alive:
            peer.sent_bytes += DEAD_DIAL_BYTES
        elif call.peer_id not in peer.connected:
            peer.connected.add(call.peer_id)
            other.connected.add(peer.identity.peer_id)
            for side in (peer, other):
                side.sent_bytes += world.connect_bytes // 2
                side.received_bytes += world.connect_bytes // 2
        if other is not None and other.is_alive:
            peer.sent_bytes += num_bytes
        if self.is_measuring:
            tally.num_calls += 1
        if other is None or not other.is_alive or self.random.random() < world.loss:
            timeout_s = world.gossip.call_timeout_s
            self._at(self.now + timeout_s, self._fail, peer, call, on_end)
            return
        delay_s = self._delay_s(peer, other)
        arrives = self.now + delay_s + num_bytes / world.rate_bytes_per_s
        self._at(arrives, self._answer, peer, other, call, num_bytes, on_end, self.now)

    def _answer(
        self,
        peer: SimPeer,
        other: SimPeer,
        call: Call,
        num_bytes: int,
        on_end: Callable[[], None] | None,
        asked_at: float,
    ) -> None:
        if not other.is_alive:
            timeout_s = self.world.gossip.call_timeout_s
            self._at(asked_at + timeout_s, self._fail, peer, call, on_end)
            return
        other.received_bytes += num_bytes
        self._count_checks(other, call.ask.news)
        told, effects = other.machine.on_ask(peer.identity.peer_id, call.ask, self.now)
        self._carry_out(other, effects)
        reply_bytes = num_told_bytes(told) + self.world.call_bytes // 2
        other.sent_bytes += reply_bytes
        if self.random.random() < self.world.loss:
            timeout_s = self.world.gossip.call_timeout_s
            self._at(asked_at + timeout_s, self._fail, peer, call, on_end)
            return
        arrives = self.now + self._delay_s(peer, other) + reply_bytes / self.world.rate_bytes_per_s
        self._at(arrives, self._told, peer, call, told, reply_bytes, on_end, asked_at)

    def _told(
        self,
        peer: SimPeer,
        call: Call,
        told: Any,
        num_bytes: int,
        on_end: Callable[[], None] | None,
        asked_at: float,
    ) -> None:
        if not peer.is_alive:
            return
        peer.received_bytes += num_bytes
        self._count_checks(peer, told.news)
        was_complete = peer.machine.is_complete
        if not was_complete:
            peer.rtts_s.append(self.now - asked_at)
        self._carry_out(peer, peer.machine.on_told(call, told, self.now))
        if peer.machine.is_complete and not was_complete:
            peer.joined_at = self.now
            if self.is_measuring:
                took_s = self.now - peer.started_at
                self.tally.joined_ms.append(1000 * took_s)
                self.tally.joined_rtts.append(took_s / statistics.median(peer.rtts_s))
        if on_end is not None:
            on_end()

    def _delay_s(self, one: SimPeer, other: SimPeer) -> float:
        """One way."""
        return self.world.near_s + self.world.far_s * math.dist(one.place, other.place)

    def _fail(self, peer: SimPeer, call: Call, on_end: Callable[[], None] | None) -> None:
        if not peer.is_alive:
            return
        if self.is_measuring:
            self.tally.num_failed += 1
        peer.connected.discard(call.peer_id)
        self._carry_out(peer, peer.machine.on_failure(call, self.now))
        if on_end is not None:
            on_end()

    def _count_checks(self, peer: SimPeer, news: tuple[Item, ...]) -> None:
        if self.is_measuring:
            table = peer.machine.table
            self.tally.num_checks += sum(table.by_id(item.id) is None for item in news)

    # Churn.

    def _depart(self) -> None:
        peer = self._draw()
        peer_id = peer.identity.peer_id
        self.alive.remove(peer_id)
        is_graceful = self.random.random() < self.world.graceful
        own = peer.machine.table.member(peer_id)
        if is_graceful and own is not None:
            gone = _gone(peer.identity, own.record, int(self.now * 1000))
            for neighbour in peer.machine.leave():
                self.call(peer, Call(neighbour, Ask(is_exchange=False, news=(gone,))))
        peer.is_alive = False
        if self.is_measuring and not is_graceful:
            for step in range(1, 60):
                self._at(self.now + 4 * step, self._watch_forgetting, peer_id, self.now)

    def _arrive(self) -> None:
        peer = self._add(self._identity(), None)
        for contact in self.random.sample(self.alive[:-1], self.world.gossip.num_contacts):
            peer.machine.meet(contact)
        item = self._member(peer.identity, self.now + self.world.gossip.lifetime_s)
        self._carry_out(peer, peer.machine.publish(item, self.now))
        self._tick(peer)
        if self.is_measuring:
            key = member_key(peer.identity.peer_id)
            for seconds in SPREAD_AT_S:
                self._at(self.now + seconds, self._watch_spreading, key, seconds)

    def _submit(self) -> None:
        peer = self._draw()
        self._num_jobs += 1
        item = self._job(peer.identity, self._num_jobs, self.now)
        self._carry_out(peer, peer.machine.publish(item, self.now))
        self._at(self.now + 0.5, self.job_keys.append, item.key)
        for step in range(1, 400):
            self._at(self.now + step / 4, self._watch_job, item.key, self.now)

    def _draw(self) -> SimPeer:
        return self.peers[self.random.choice(self.alive)]

    # Measuring.

    def _look_up(self) -> None:
        asker = self._draw()
        if self.random.random() < 0.2 and self.job_keys:
            key = self.random.choice(self.job_keys)
        else:
            target = self._draw()
            if self.now - target.started_at < 0.5:  # nobody has heard of it yet
                return
            key = member_key(target.identity.peer_id)
        Lookup(self, asker, key).go_on()

    def _watch_spreading(self, key: str, seconds: int) -> None:
        target = self.peers.get(PeerId(key.partition("/")[2]))
        if target is None or not target.is_alive:
            return
        peers = [self.peers[peer_id] for peer_id in self._some_alive(500)]
        known = sum(bool(peer.machine.table.find(key)) for peer in peers) / len(peers)
        self.tally.spread.setdefault(seconds, []).append(known)

    def _watch_job(self, key: str, submitted_at: float) -> None:
        """Note when a job has reached everyone (of a sample, where they are many)."""
        if key in self._jobs_everywhere:
            return
        peers = [self.peers[peer_id] for peer_id in self._some_alive(300)]
        if all(peer.machine.table.find(key) for peer in peers):
            self._jobs_everywhere.add(key)
            self.tally.job_to_all_s.append(self.now - submitted_at)

    def _watch_forgetting(self, peer_id: PeerId, died_at: float) -> None:
        if peer_id not in self.peers:
            return
        peers = [self.peers[other] for other in self._some_alive(300)]
        known = sum(peer.machine.table.member(peer_id) is not None for peer in peers)
        if known <= len(peers) // 100:
            self.tally.forgotten_s.append(self.now - died_at)
            del self.peers[peer_id]

    def _sample_staleness(self) -> None:
        alive = set(self.alive)
        for peer_id in self._some_alive(10):
            members = list(self.peers[peer_id].machine.table.members())
            stale = sum(item.author not in alive for item in members)
            self.tally.stale_shares.append(stale / max(1, len(members)))

    def _some_alive(self, num: int) -> list[PeerId]:
        return self.random.sample(self.alive, min(num, len(self.alive)))

    def _figures(self, set_up_s: float, wall_s: float) -> dict[str, Any]:
        world, tally = self.world, self.tally
        span_s = world.duration_s
        old = [p for p in self.peers.values() if p.is_alive and p.started_at < START + 1]
        rates = sorted((p.sent_bytes + p.received_bytes) / span_s for p in old)
        everyone = sum(
            p.sent_bytes + p.received_bytes for p in self.peers.values() if p.is_alive
        ) / (span_s * len(self.alive))
        rounds = tally.found_rounds
        found = [number for number in rounds if number >= 0]
        tables = [len(self.peers[p].machine.table) for p in self._some_alive(100)]
        table_bytes = [self.peers[p].machine.table.num_bytes for p in self._some_alive(100)]
        return {
            "num_peers": world.num_peers,
            "duration_s": span_s,
            "bytes_per_s_mean": everyone,
            "bytes_per_s_p50": percentile(rates, 50),
            "bytes_per_s_p99": percentile(rates, 99),
            "calls_per_peer_s": tally.num_calls / span_s / world.num_peers,
            "failed_calls": tally.num_failed / max(1, tally.num_calls),
            "num_lookups": len(rounds),
            "found_share": len(found) / max(1, len(rounds)),
            "found_locally_share": found.count(0) / max(1, len(rounds)),
            "rtts_p50": percentile(sorted(found), 50),
            "rtts_p99": percentile(sorted(found), 99),
            "rtts_max": max(found, default=0),
            "find_ms_p50": percentile(sorted(tally.found_ms), 50),
            "find_ms_p99": percentile(sorted(tally.found_ms), 99),
            "join_ms_p50": percentile(sorted(tally.joined_ms), 50),
            "join_ms_p99": percentile(sorted(tally.joined_ms), 99),
            "join_rtts_p50": percentile(sorted(tally.joined_rtts), 50),
            "spread": {
                str(seconds): statistics.mean(shares)
                for seconds, shares in sorted(tally.spread.items())
            },
            "job_to_all_s_p50": percentile(sorted(tally.job_to_all_s), 50),
            "forgotten_s_p50": percentile(sorted(tally.forgotten_s), 50),
            "forgotten_s_p99": percentile(sorted(tally.forgotten_s), 99),
            "stale_share": statistics.mean(tally.stale_shares or [0.0]),
            "signature_checks_per_peer_s": tally.num_checks / span_s / world.num_peers,
            "table_records": statistics.mean(tables),
            "table_bytes": statistics.mean(table_bytes),
            "record_bytes": len(self._member(self._identity(), self.now + 60).record.raw),
            "set_up_s": set_up_s,
            "wall_s": wall_s,
            "rss_gb": psutil.Process().memory_info().rss / 1e9,
        }


def _signed(identity: Identity, body: Any, sequence: int, expires_at: float) -> Item:
    return Item(sign(identity, body, sequence=sequence, expires_at=expires_at))


def _gone(identity: Identity, record: Signed[Any], sequence: int) -> Item:
    body = Gone(subject=subject_of(record.author), seq=record.sequence)
    return _signed(identity, body, sequence, record.expires_at)
