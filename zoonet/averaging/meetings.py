"""When the members of a site meet within a round, and who is to be there. Pure.

Members of a site average what they have trained so far several times a round. They meet where each
has done the same part of its lease, so peers of unequal speed come at about the same time; whoever
has too few steps to have done any since the last meeting is not expected. All of this follows
from the signed plan: so do the weights, which nobody can choose for itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from msgspec import msgpack

from zoonet.averaging.messages import Lease, Round
from zoonet.crypto import PeerId, sha256

KEY_BYTES = 16


@dataclass(frozen=True)
class Meeting:
    """The `number`-th of a round: who is expected, in the order of ids, and with what weight."""

    number: int
    peers: tuple[PeerId, ...]
    weights: tuple[int, ...]

    def owner_of(self, chunk: int) -> PeerId:
        """Who averages the chunk. Each time it is another one, lest a lost owner's stay apart."""
        return self.peers[(chunk + self.number) % len(self.peers)]

    def bits(self, peers: Collection[PeerId]) -> int:
        """The set of peers as a number."""
        return sum(1 << at for at, peer in enumerate(self.peers) if peer in peers)

    def of_bits(self, bits: int) -> frozenset[PeerId]:
        """The set that `bits` made, without what nobody stands for."""
        return frozenset(peer for at, peer in enumerate(self.peers) if bits >> at & 1)


@dataclass(frozen=True)
class Meetings:
    """Those of one site in one round, every `site_steps` of `inner_steps` steps."""

    plan: Round
    me: PeerId
    inner_steps: int
    site_steps: int

    @cached_property
    def leases(self) -> tuple[Lease, ...]:
        """What the members of this peer's site are to train: its own alone, where it has none."""
        own = self.plan.lease_of(self.me)
        return tuple(lease for lease in self.plan.leases if lease.steps and lease.site == own.site)

    @cached_property
    def key(self) -> bytes:
        """What names the round and the site on the data plane (16 bytes)."""
        plan = self.plan
        seat = (plan.job_id, plan.index, plan.view, plan.parent)
        lease_of = [(lease.peer, lease.steps) for lease in self.leases]
        return sha256(b"zoonet-site/1\x00", msgpack.encode((seat, lease_of)))[:KEY_BYTES]

    @cached_property
    def at_steps(self) -> dict[int, Meeting]:
        """This peer's meetings, by how many steps of its lease it has done then; in order."""
        steps = self.plan.lease_of(self.me).steps
        found = {}
        for number in range(1, -(-self.inner_steps // self.site_steps)):
            expected = [lease for lease in self.leases if self._comes(lease.steps, number)]
            peers = tuple(PeerId(lease.peer) for lease in expected)
            if self.me in peers and len(peers) > 1:
                weights = tuple(lease.steps for lease in expected)
                found[self._steps_before(steps, number)] = Meeting(number, peers, weights)
        return found

    def expected_by(self, number: int) -> frozenset[PeerId]:
        """Who has been expected at that meeting or one before it, this peer's own or not."""
        return frozenset(
            PeerId(lease.peer)
            for lease in self.leases
            if self._steps_before(lease.steps, number) > 0
        )

    def _steps_before(self, steps: int, number: int) -> int:
        return steps * number * self.site_steps // self.inner_steps

    def _comes(self, steps: int, number: int) -> bool:
        """Whether whoever has so many steps to do has done one since the meeting before."""
        return self._steps_before(steps, number) > self._steps_before(steps, number - 1)
