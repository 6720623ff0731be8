"""What is here of one chunk in one round.

N = values of one chunk
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from zoonet.averaging.roles import Role
from zoonet.averaging.wire import Values, is_finite
from zoonet.exact import Vector

NOBODY: Final = -1


@dataclass(slots=True)
class Part:
    """A chunk of a contribution, or of a site's mean, and who is in it.

    As it was sent, where that is smaller: many may wait for one slow peer.
    """

    values: Values
    bits: int

    @property
    def is_finite(self) -> bool:
        """No codec decodes to anything else."""
        return isinstance(self.values, memoryview) or is_finite(self.values)


@dataclass(slots=True)
class Chunk:
    """Where one chunk stands."""

    role: Role
    parts: dict[int, Part] = field(default_factory=dict)
    sum: Part | None = None  # the site's mean, where this peer owns the chunk but is not its root
    sum_raw: memoryview = memoryview(b"")  # the same as it is sent
    posted_up: int = NOBODY  # whom this peer has sent its part or its site's mean
    is_busy: bool = False  # being added up
    mean_N: Vector | None = None
    mean_raw: memoryview = memoryview(b"")  # as its maker sent it; empty where it can be made again
    mean_maker: int = NOBODY
    mean_bits: int = 0
    posted_down: set[int] = field(default_factory=set)

    def has_mean(self, needed_bits: int) -> bool:
        """Tell whether the mean is here, by this attempt's root, of all these contributors."""
        if self.mean_maker != self.role.tree.root:
            return False
        return self.mean_bits & needed_bits == needed_bits

    def has_added(self, sender: int) -> bool:
        """What the sender could bring is in this site's mean already."""
        return self.sum is not None and bool(self.sum.bits >> sender & 1)

    def let_go_of_parts(self) -> None:
        """Hold none of what the mean was made from: no attempt is to come that needs it."""
        self.parts.clear()
        self.sum, self.sum_raw = None, memoryview(b"")

    def let_go(self) -> None:
        """Hold none of what has come any more."""
        self.let_go_of_parts()
        self.mean_N, self.mean_raw = None, memoryview(b"")
