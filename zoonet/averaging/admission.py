"""Who may send what in a round's all-reduce, and when. Pure; peers are indices into the plan's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from zoonet.averaging.chunks import Header, Kind, indices_of
from zoonet.averaging.held import Chunk
from zoonet.averaging.plan import Plan
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart, ProtocolViolation


def require_size(peer_id: PeerId, num_bytes: int, expected: int) -> None:
    """Raise InvalidPart for a payload of another size."""
    if num_bytes != expected:
        raise InvalidPart(peer_id, f"{num_bytes} bytes, not {expected}")


def would_hold(chunk: Chunk, header: Header, needed_bits: int) -> bool:
    """Tell whether a mean is by this attempt's root, of all these contributors."""
    if header.maker != chunk.role.tree.root:
        return False
    return header.bits & needed_bits == needed_bits


@dataclass(frozen=True, slots=True)
class Admission:
    """What one peer lets in, in one attempt."""

    peers: tuple[PeerId, ...]
    me: int
    neighbours: frozenset[int]  # everyone in this peer's site
    number: int  # of the attempt
    needed_bits: int  # its contributors

    def is_wanted(self, chunk: Chunk, sender: int, header: Header) -> bool:
        """Tell whether a chunk is still needed. Raises ProtocolViolation if it never was."""
        is_stale = header.number < self.number
        if header.kind == Kind.MEAN:
            return self._is_mean_wanted(chunk, sender, header, is_stale=is_stale)
        if sender not in chunk.role.sources or sender == self.me:
            if not is_stale:
                raise ProtocolViolation(self.peers[sender], "a chunk for another peer")
            return False
        is_neighbour = sender in self.neighbours
        if is_neighbour != (header.kind == Kind.PART):
            raise ProtocolViolation(self.peers[sender], "a part for a sum, or a sum for a part")
        is_here = sender in chunk.parts or chunk.has_added(sender)
        return not (is_here or chunk.has_mean(self.needed_bits))

    def _is_mean_wanted(self, chunk: Chunk, sender: int, header: Header, *, is_stale: bool) -> bool:
        if sender != chunk.role.parent and not is_stale:
            raise ProtocolViolation(self.peers[sender], "a mean that it does not hand out")
        if sender != chunk.role.parent or chunk.has_mean(self.needed_bits):
            return False
        if not would_hold(chunk, header, self.needed_bits):
            if is_stale:
                return False
            raise ProtocolViolation(self.peers[sender], "a mean without some contributor")
        return True

    def check_sum(
        self,
        plan: Plan,
        sender: int,
        bits: int,
        contributors: frozenset[int],
        known: Collection[int],
    ) -> None:
        """A site's sum is of all its contributors, and of nobody unheard of.

        Raises InvalidPart.
        """
        site = set(plan.sites[plan.site_of(sender)])
        named = set(indices_of(bits))
        if not site & contributors <= named <= site & set(known):
            raise InvalidPart(self.peers[sender], "a sum that is not of all of its site alone")
