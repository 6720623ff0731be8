"""What a benchmark asks of everybody who averages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from zoonet.exact import Vector

Hello = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where one peer of a contender stands."""

    peer: int
    sites: tuple[tuple[int, ...], ...]
    num_values: int
    # This peer's IPv4 address, and the interface that has it.
    address: str
    interface: str
    # For sockets, keys and certificates; this peer's own.
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def num_peers(self) -> int:
        """Peers of all sites together."""
        return sum(len(site) for site in self.sites)

    @property
    def others(self) -> list[int]:
        """Everyone else's number."""
        return [peer for peer in range(self.num_peers) if peer != self.peer]


@runtime_checkable
class Contender(Protocol):
    """One peer's part of an all-reduce. The methods are called in the order in which they stand.

    Whatever they raise is reported, and the run with it counted as failed.
    """

    value_tolerance: float
    """How far a value may be from the exact mean."""

    also_allowed: frozenset[int]
    """Who may be in parts of the last round's mean besides its contributors: who has been lost."""

    async def start(self) -> Hello:
        """Listen. Returns what the others must know, as JSON."""
        ...

    async def connect(self, hellos: list[Hello]) -> None:
        """Meet the others; `hellos` are in the order of peers, this one's too."""
        ...

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        """Take this peer's vector (P,), and do what precedes a round: above all find the others.

        Returns what may be told of it; `coordinator` is the number of who leads the round.
        """
        ...

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        """Average. Returns whose vectors are in the mean, as far as this contender knows.

        `told` is what all peers returned when they prepared, in their order.

        A peer whose vector weighs twice as much as another's stands there twice.
        """
        ...

    def result(self) -> Vector:
        """Return the mean (P,) of the last round."""
        ...

    async def close(self) -> None:
        """End everything. Called once, even after a failure."""
        ...


@runtime_checkable
class Trainee(Protocol):
    """One peer's part in training a model; what comes of it is its own record of its time.

    Of those that train `start`, `connect` and `close` are as those of a `Contender`; but `connect`
    may be called again, when others have come back.
    """

    async def start(self) -> Hello: ...

    async def connect(self, hellos: list[Hello]) -> None: ...

    async def train(self) -> None:
        """Begin; return at once."""
        ...

    def figures(self) -> dict[str, Any]:
        """Return, as JSON, what has been done so far. Raises whatever has ended it.

        `began` holds the monotonic instants of all its steps, `step_s` is what each lasted.
        """
        ...

    async def close(self) -> None: ...
