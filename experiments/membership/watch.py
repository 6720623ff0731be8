"""What is measured in a simulation: it looks on, and never takes part but for look-ups."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

import psutil

from experiments.membership.lookup import Lookup
from experiments.membership.world import START, Tally, percentile
from zoonet.crypto import PeerId
from zoonet.membership.gossip import Item, Table, member_key

if TYPE_CHECKING:
    from experiments.membership.simulate import SimPeer, Simulation

SPREAD_AT_S: Final = (1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 60)
FORGET_STEP_S: Final = 4  # between two looks at who still lists a dead peer
MIN_AGE_S: Final = 0.5  # before that nobody can have heard of a peer, and none is looked up


class Watch:
    """Measures from `begin` on; `figures` tells what it saw."""

    def __init__(self, simulation: Simulation) -> None:
        self.tally = Tally()
        self.job_keys: list[str] = []  # that may be looked up
        self._simulation = simulation
        self._is_measuring = False
        self._jobs_everywhere: set[str] = set()

    def begin(self) -> None:
        """The warm-up is over."""
        simulation, world = self._simulation, self._simulation.world
        self._is_measuring = True
        for peer in simulation.peers.values():
            peer.sent_bytes = peer.received_bytes = 0
        now, draw = simulation.now, simulation.random
        for _ in range(int(world.lookups_per_s * world.duration_s)):
            simulation.at(now + draw.uniform(0, world.duration_s - 5), self._look_up)
        for step in range(1, 6):
            simulation.at(now + step * world.duration_s / 6, self._sample_staleness)

    # What happened.

    def called(self) -> None:
        """A peer makes a call."""
        self.tally.num_calls += self._is_measuring

    def failed(self) -> None:
        """A call was not answered."""
        self.tally.num_failed += self._is_measuring

    def received(self, table: Table, news: tuple[Item, ...]) -> None:
        """A peer gets records: it checks the signatures of those that it lacks."""
        if self._is_measuring:
            self.tally.num_checks += sum(table.by_id(item.id) is None for item in news)

    def completed(self, peer: SimPeer) -> None:
        """A newcomer has the table."""
        if self._is_measuring:
            took_s = self._simulation.now - peer.started_at
            self.tally.joined_ms.append(1000 * took_s)
            self.tally.joined_rtts.append(took_s / statistics.median(peer.rtts_s))

    def came(self, peer_id: PeerId) -> None:
        """A newcomer has told of itself: who knows it, after how long?"""
        if self._is_measuring:
            for seconds in SPREAD_AT_S:
                when = self._simulation.now + seconds
                self._simulation.at(when, self._watch_spreading, member_key(peer_id), seconds)

    def died(self, peer_id: PeerId) -> None:
        """A peer has gone without a goodbye: when do all drop it?"""
        if self._is_measuring:
            now = self._simulation.now
            for step in range(1, 60):
                when = now + FORGET_STEP_S * step
                self._simulation.at(when, self._watch_forgetting, peer_id, now)

    def submitted(self, key: str) -> None:
        """A job was published: when does everyone have it?"""
        now = self._simulation.now
        self._simulation.at(now + MIN_AGE_S, self.job_keys.append, key)
        for step in range(1, 400):
            self._simulation.at(now + step / 4, self._watch_job, key, now)

    # Looking.

    def _look_up(self) -> None:
        simulation = self._simulation
        asker = simulation.draw()
        if simulation.random.random() < 0.2 and self.job_keys:
            key = simulation.random.choice(self.job_keys)
        else:
            target = simulation.draw()
            if simulation.now - target.started_at < MIN_AGE_S:
                return
            key = member_key(target.identity.peer_id)
        Lookup(simulation, asker, key).go_on()

    def _watch_spreading(self, key: str, seconds: int) -> None:
        target = self._simulation.peers.get(PeerId(key.partition("/")[2]))
        if target is None or not target.is_alive:
            return
        peers = self._some_alive(500)
        known = sum(bool(peer.machine.table.find(key)) for peer in peers) / len(peers)
        self.tally.spread.setdefault(seconds, []).append(known)

    def _watch_job(self, key: str, submitted_at: float) -> None:
        """Note when a job has reached everyone (of a sample, where they are many)."""
        if key in self._jobs_everywhere:
            return
        if all(peer.machine.table.find(key) for peer in self._some_alive(300)):
            self._jobs_everywhere.add(key)
            self.tally.job_to_all_s.append(self._simulation.now - submitted_at)

    def _watch_forgetting(self, peer_id: PeerId, died_at: float) -> None:
        if peer_id not in self._simulation.peers:
            return
        peers = self._some_alive(300)
        known = sum(peer.machine.table.member(peer_id) is not None for peer in peers)
        if known <= len(peers) // 100:
            self.tally.forgotten_s.append(self._simulation.now - died_at)
            del self._simulation.peers[peer_id]

    def _sample_staleness(self) -> None:
        alive = set(self._simulation.alive)
        for peer in self._some_alive(10):
            members = list(peer.machine.table.members())
            stale = sum(item.author not in alive for item in members)
            self.tally.stale_shares.append(stale / max(1, len(members)))

    def _some_alive(self, num: int) -> list[SimPeer]:
        alive = self._simulation.alive
        chosen = self._simulation.random.sample(alive, min(num, len(alive)))
        return [self._simulation.peers[peer_id] for peer_id in chosen]

    def figures(self) -> dict[str, Any]:
        """All of it, by name."""
        return {**self._costs(), **self._finds(), **self._news()}

    def _costs(self) -> dict[str, Any]:
        """Bytes and signatures; those of single peers are of peers that were there all the time."""
        simulation, world, tally = self._simulation, self._simulation.world, self.tally
        span_s = world.duration_s
        alive = [peer for peer in simulation.peers.values() if peer.is_alive]
        rates = {peer: (peer.sent_bytes + peer.received_bytes) / span_s for peer in alive}
        old = sorted(rate for peer, rate in rates.items() if peer.started_at < START + 1)
        tables = [peer.machine.table for peer in self._some_alive(100)]
        return {
            "num_peers": world.num_peers,
            "duration_s": span_s,
            "bytes_per_s_mean": sum(rates.values()) / len(alive),
            "bytes_per_s_p50": percentile(old, 50),
            "bytes_per_s_p99": percentile(old, 99),
            "calls_per_peer_s": tally.num_calls / span_s / world.num_peers,
            "failed_calls": tally.num_failed / max(1, tally.num_calls),
            "signature_checks_per_peer_s": tally.num_checks / span_s / world.num_peers,
            "table_records": statistics.mean(len(table) for table in tables),
            "table_bytes": statistics.mean(table.num_bytes for table in tables),
            "record_bytes": simulation.record_bytes,
            "rss_gb": psutil.Process().memory_info().rss / 1e9,
        }

    def _finds(self) -> dict[str, Any]:
        """Look-ups."""
        rounds = self.tally.found_rounds
        found = sorted(number for number in rounds if number >= 0)
        times_ms = sorted(self.tally.found_ms)
        return {
            "num_lookups": len(rounds),
            "found_share": len(found) / max(1, len(rounds)),
            "found_locally_share": found.count(0) / max(1, len(rounds)),
            "rtts_p50": percentile(found, 50),
            "rtts_p99": percentile(found, 99),
            "rtts_max": max(found, default=0),
            "find_ms_p50": percentile(times_ms, 50),
            "find_ms_p99": percentile(times_ms, 99),
        }

    def _news(self) -> dict[str, Any]:
        """How fast peers and jobs become known, and the dead forgotten."""
        tally = self.tally
        return {
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
        }
