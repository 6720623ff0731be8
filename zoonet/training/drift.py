"""The outer momentum in equal parts: `training.outer_momentum_spread`.

Of the next outer step a part is known beforehand, whatever the round's mean will be: lr momentum^2
times the momentum vector (`zoonet.training.outer`). A trainer takes it in equal parts in the steps
of the round, so that it arrives where the outer step will lead but for the mean, instead of being
thrown there at once, away from where its early steps were taken.

::

    outer_P ──work──work──work──work──> local_P       told: the work alone, without what is known
       └─────╲─────╲─────╲─────╲──────> trained       where gradients are computed

Nothing else knows of it. The outer step, and with it the state that is certified, hashed, served
to joiners and published, is the same to the bit; so is all that stands in `local_P`: theta_local
without the drift, which therefore never counts as work.

P = flat parameters
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from zoonet.training.models import PlacedModel

Vector = NDArray[np.float32]


def known_scale(lr: float, momentum: float) -> float:
    """Return how many times the momentum vector the next outer step subtracts, with any mean."""
    return lr * momentum**2


def share_after(share: float, goal: float, num_steps: int) -> float:
    """Return the share that is applied after the next of `num_steps` steps up to `goal`.

    It never goes back: a round that was not certified has left it where the next one goes.
    """
    return share + max(0.0, goal - share) / max(1, num_steps)


class Drift:
    """How far a device's parameters have moved on by the momentum: `share` in [0, 1] of it.

    Costs one vector of the model's size on the device; each rank of several has its own rows.
    """

    def __init__(self, placed: PlacedModel, scale: float) -> None:
        self.share = 0.0
        self._placed = placed
        self._scale = scale
        self._momentum_P = torch.zeros_like(placed.grad_P)

    def renew(self, momentum_P: Vector | None) -> None:
        """The parameters hold no drift, and this (P,) is the momentum from now on (None: zero)."""
        if momentum_P is None:
            self._momentum_P.zero_()
        else:
            self._placed.take_(self._momentum_P, momentum_P)
        self.share = 0.0

    def go_to(self, share: float) -> None:
        """Move the parameters on, or back, to this share."""
        if share != self.share:
            self._placed.add_(self._momentum_P, (self.share - share) * self._scale)
            self.share = share

    def placed_anew(self) -> None:
        """Parameters without drift were loaded: move them to where the share is."""
        self._placed.add_(self._momentum_P, -self.share * self._scale)

    def store(self, theta_P: Vector) -> None:
        """Write the parameters (P,) as they were without drift to CPU memory."""
        self._placed.store_sum(self._momentum_P, self.share * self._scale, theta_P)
