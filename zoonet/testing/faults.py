"""What goes wrong in a test, planned ahead: cut links and slow peers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from zoonet.crypto import PeerId


@dataclass(slots=True)
class FaultPlan:
    """Links that are cut and peers whose every message waits. Empty: a perfect network."""

    latency_s: float = 0.01
    cut_links: set[frozenset[PeerId]] = field(default_factory=set)
    extra_delay_s: dict[PeerId, float] = field(default_factory=dict)

    def cut(self, left: PeerId, right: PeerId) -> None:
        """Break the link between two peers, both ways."""
        self.cut_links.add(frozenset((left, right)))

    def heal(self, left: PeerId, right: PeerId) -> None:
        """Mend the link between two peers."""
        self.cut_links.discard(frozenset((left, right)))

    def is_cut(self, left: PeerId, right: PeerId) -> bool:
        """Tell whether the two peers cannot reach each other."""
        return frozenset((left, right)) in self.cut_links

    async def delay(self, sender: PeerId, receiver: PeerId, num_bytes: int) -> None:
        """Wait as long as a message of this size takes from one peer to the other."""
        slow_s = self.extra_delay_s.get(sender, 0.0) + self.extra_delay_s.get(receiver, 0.0)
        await asyncio.sleep(self.latency_s + slow_s)
