"""The held-out losses of a job's rounds, each from the one peer whose turn it was to measure it."""

from __future__ import annotations

from typing import Final

from zoonet.averaging import Chain, RoundResult
from zoonet.crypto import PeerId

MAX_TOLD: Final = 128  # as in `JobResult`


def evaluator_of(result: RoundResult) -> PeerId:
    """Who measures the loss after a round: its contributors take turns."""
    return PeerId(result.contributions[result.index % len(result.contributions)].peer)


class Evaluations:
    """Losses by number of rounds. Anybody may claim one, so only the evaluator's word counts."""

    def __init__(self) -> None:
        self._losses: dict[int, float] = {}

    def note(self, chain: Chain, teller: PeerId, num_rounds: int, loss: float) -> None:
        """A peer says what the loss was after so many rounds; 0.0 says nothing."""
        if not loss or not 0 < num_rounds <= len(chain):
            return
        if evaluator_of(chain.certificates[num_rounds - 1].result) == teller:
            self._losses[num_rounds] = loss

    def told(self) -> tuple[tuple[int, float], ...]:
        """All of them in order, thinned out evenly where they are more than MAX_TOLD."""
        losses = sorted(self._losses.items())
        if len(losses) <= MAX_TOLD:
            return tuple(losses)
        last = len(losses) - 1
        return tuple(losses[at * last // (MAX_TOLD - 1)] for at in range(MAX_TOLD))
