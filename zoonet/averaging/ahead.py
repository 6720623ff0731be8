"""Whether to train on while a round is averaged, or to wait. Pure.

Steps taken before a round's mean is known start from the wrong place and lose a share of their
worth. With e such steps in a round of H, a share l of them lost, a peer that goes ahead gets
H - l e steps' worth out of the time of H; one that waits gets H out of the time of H + e. Going
ahead gains (1 - l e / H) (1 + e / H) - 1.

The share grows with the outer momentum, which carries the parameters away from where their
members stand. docs/training.md has the measurements: few, and of a small model. They tell
whether to wait with a given momentum, not which momentum is good for a job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# Of what a step is worth, by outer momentum: with 8 early steps of 25 and 4 replicas.
LOST_SHARES: Final = ((0.0, 0.14), (0.6, 0.36), (0.9, 0.73))
LEAST_GAIN: Final = 0.07  # below it the measurements do not tell a gain from a loss


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """What to do while a round is averaged: so many steps (0: wait), and what they gain.

    `gain` is that of going ahead in work per time, 0.1 for a tenth more than with waiting; where
    it is small or negative, `steps` is 0.
    """

    steps: int
    gain: float


def lost_share(momentum: float) -> float:
    """Return the share of an early step's worth that is lost, for an outer momentum in [0, 1)."""
    (low, least), *others = LOST_SHARES
    for high, most in others:
        if momentum <= high:
            return least + (most - least) * (momentum - low) / (high - low)
        low, least = high, most
    return least + (1.0 - least) * (momentum - low) / (1.0 - low)


def meanwhile(inner_steps: int, *, step_s: float, averaging_s: float, momentum: float) -> Meanwhile:
    """Decide for rounds of so many steps of `step_s`, averaged in `averaging_s` (both seconds).

    A round that takes longer to average than to train always waits for the rest.
    """
    if inner_steps < 1 or step_s <= 0 or averaging_s < 0:
        raise ValueError(f"{inner_steps} steps of {step_s} s, averaged in {averaging_s} s")
    early = min(inner_steps, math.ceil(averaging_s / step_s))
    ratio = early / inner_steps
    gain = (1.0 - lost_share(momentum) * ratio) * (1.0 + ratio) - 1.0
    return Meanwhile(early if gain >= LEAST_GAIN else 0, gain)
