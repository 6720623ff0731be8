"""One look-up in a simulation, as `Registry.find` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoonet.crypto import PeerId
from zoonet.membership.gossip import Ask, Call

if TYPE_CHECKING:
    from experiments.membership.simulate import SimPeer, Simulation


class Lookup:
    """One peer looks for one key, as `Registry.find` does."""

    def __init__(self, simulation: Simulation, asker: SimPeer, key: str) -> None:
        self._simulation = simulation
        self._asker = asker
        self._key = key
        self._began = simulation.now
        self._num_rounds = 0
        self._num_waiting = 0
        self._tried: list[PeerId] = []
        self._is_over = False

    def go_on(self) -> None:
        """Read the table; ask three more peers, at most twice."""
        machine = self._asker.machine
        if machine.table.find(self._key):
            self._end(self._num_rounds)
            return
        if self._num_waiting:
            return
        peers = (
            machine.neighbours.whom_to_ask(self._key, self._tried) if self._num_rounds < 3 else []
        )
        if not peers:
            self._end(-1)
            return
        self._num_rounds += 1
        self._tried += peers
        self._num_waiting = len(peers)
        ask = Ask(is_exchange=False, find=(self._key,))
        for peer_id in peers:
            self._simulation.call(self._asker, Call(peer_id, ask), self._heard)

    def _heard(self) -> None:
        self._num_waiting -= 1
        self.go_on()

    def _end(self, num_rounds: int) -> None:
        if self._is_over:
            return
        self._is_over = True
        tally = self._simulation.watch.tally
        tally.found_rounds.append(num_rounds)
        tally.found_ms.append(1000 * (self._simulation.now - self._began))
