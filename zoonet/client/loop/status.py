"""Where a run stands, in a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmStatus:
    """Where a run stands, as this peer knows it. `print` it."""

    run: str
    phase: str  # joining, waiting, training, averaging, finished
    num_rounds: int  # certified
    num_peers: int  # of the last round
    num_done: int  # certified steps, of all peers
    num_steps: int  # of the whole run
    own_steps: int  # this peer's among the certified ones
    samples_per_s: float  # this peer's speed

    @property
    def progress(self) -> float:
        """How far the run is, from 0 to 1: what a learning rate may follow."""
        return self.num_done / self.num_steps if self.num_steps else 0.0

    def __str__(self) -> str:
        return (
            f"{self.run}: {self.phase}, round {self.num_rounds}, {self.num_peers} peers, "
            f"step {self.num_done} of {self.num_steps} ({self.own_steps} here), "
            f"{self.samples_per_s:.1f} samples/s"
        )
