"""What the table still lacks, and what its entries say. Pure functions.

An entry is what `tokens.run` returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.efficiency.contenders import RATES, Contender, Setting, contenders_of
from experiments.testbed.measuring import Spread, spread

Entry = Mapping[str, Any]
Points = Sequence[tuple[float, float]]  # tokens, loss

MAX_RATES = 7  # of one sweep: so far it goes on where one end of the grid is best


def loss_of(entry: Entry) -> float:
    """The held-out loss at the end; infinite where training came to no number."""
    return math.inf if entry["loss"] is None else float(entry["loss"])


def of(
    entries: Iterable[Entry],
    contender: str,
    num_peers: int,
    *,
    seed: int | None = None,
    share: float | None = None,
) -> list[Entry]:
    """The entries of one contender."""
    return [
        one
        for one in entries
        if (one["contender"], one["num_peers"]) == (contender, num_peers)
        and seed in (None, one["seed"])
        and share in (None, one["share"])
    ]


# --- what is missing ------------------------------------------------------------------------------


def next_rate(losses: Mapping[float, float]) -> float | None:
    """The next learning rate of a sweep, which goes on at an end that is best; None: it is over."""
    for rate in RATES:
        if rate not in losses:
            return rate
    best: float = min(losses, key=lambda rate: losses[rate])
    if len(losses) >= MAX_RATES:
        return None
    if best == max(losses):
        return best * 2
    return best / 2 if best == min(losses) else None


def best_rate(entries: Iterable[Entry], contender: str, num_peers: int) -> float | None:
    """The learning rate of the least loss of the first seed; None while its sweep goes on."""
    swept = of(entries, contender, num_peers, seed=1, share=1.0)
    losses: dict[float, float] = {one["inner_lr"]: loss_of(one) for one in swept}
    if not losses or next_rate(losses) is not None:
        return None
    return min(losses, key=lambda rate: losses[rate])


def missing(
    entries: Sequence[Entry], contenders: Sequence[Contender], num_peers: int, seeds: int
) -> Setting | None:
    """The training that comes next.

    First sweeps, each twin's with its lengths, as nothing can be said without; then the others'
    lengths, and then the other seeds.
    """
    known = {tuple(one[key] for key in _KEYS) for one in entries}
    wanted: list[Setting] = []
    for contender in contenders:
        rate = best_rate(entries, contender.name, num_peers)
        if rate is None:
            swept = of(entries, contender.name, num_peers, seed=1, share=1.0)
            rate = next_rate({one["inner_lr"]: loss_of(one) for one in swept})
            assert rate is not None
            return Setting(contender=contender.name, num_peers=num_peers, inner_lr=rate)
        lengths = [
            Setting(
                contender=contender.name,
                num_peers=num_peers,
                inner_lr=rate,
                share=share,
                seed=seed,
            )
            for seed in range(1, seeds + 1)
            for share in (1.0, *contender.shares)
        ]
        left = [one for one in lengths if tuple(asdict(one)[key] for key in _KEYS) not in known]
        if contender.is_twin and left and left[0].seed == 1:
            return left[0]
        wanted += left
    return min(wanted, key=lambda one: one.seed, default=None)


_KEYS = ("contender", "num_peers", "inner_lr", "share", "seed")


# --- what they say --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reached:
    """Tokens after which a loss is reached. `is_bound`: already by the shortest run, at most so."""

    tokens: float
    is_bound: bool = False


def tokens_to(points: Points, loss: float) -> Reached | None:
    """When a loss is reached, linear in the logarithm of tokens between points; None where never.

    Where the loss goes up in between, the first point that is low enough counts.
    """
    before: tuple[float, float] | None = None
    for tokens, reached in sorted(points):
        if reached <= loss:
            if before is None:
                return Reached(tokens, is_bound=reached < loss)
            if math.isinf(before[1]):
                return Reached(tokens, is_bound=True)
            share = (before[1] - loss) / (before[1] - reached)
            return Reached(float(before[0] * (tokens / before[0]) ** share))
        before = (tokens, reached)
    return None


def frontier(points: Points) -> list[tuple[float, float]]:
    """Only those with a lower loss than any with fewer tokens, in order."""
    found: list[tuple[float, float]] = []
    for tokens, loss in sorted(points):
        if not found or loss < found[-1][1]:
            found.append((tokens, loss))
    return found


def points_of(entries: Sequence[Entry], contender: str, num_peers: int, seed: int) -> Points:
    """The best that a contender came to with so many tokens, whatever the rate or the length.

    A long run is often ahead of a shorter one in its middle already, as its rate is higher there.
    """
    runs = of(entries, contender, num_peers, seed=seed)
    return frontier([(tokens, loss) for one in runs for tokens, loss in one["curve"]])


def ends_of(entries: Sequence[Entry], contender: str, num_peers: int) -> dict[int, Entry]:
    """By seed, the run of the whole length at the best rate."""
    rate = best_rate(entries, contender, num_peers)
    whole = of(entries, contender, num_peers, share=1.0)
    return {one["seed"]: one for one in whole if one["inner_lr"] == rate}


@dataclass(frozen=True, slots=True)
class Worth:
    """What a contender's training is worth, one figure for each seed."""

    contender: str
    inner_lr: float
    losses: tuple[float, ...]
    of_same_batch: tuple[float, ...]  # share of tokens that the twin needs for the same loss
    of_best: tuple[float, ...]  # the same for the twin of the best batch
    num_bounds: int  # of these: at most so much, as the twin's shortest run is better already
    num_better: int  # and at least 1, as no twin comes there

    @property
    def tokens(self) -> Spread | None:
        """Token efficiency against the best-tuned twin."""
        return spread(self.of_best)


def worths(entries: Sequence[Entry], num_peers: int) -> list[Worth]:
    """Token efficiency of every contender that is through its sweep, seed by seed."""
    names = [contender.name for contender in contenders_of(num_peers)]
    found = [_worth(entries, name, num_peers) for name in names]
    return [worth for worth in found if worth is not None]


def _worth(entries: Sequence[Entry], name: str, num_peers: int) -> Worth | None:
    rate = best_rate(entries, name, num_peers)
    if rate is None:
        return None
    ends = ends_of(entries, name, num_peers)
    twins = [c.name for c in contenders_of(num_peers) if c.is_twin]
    same, best = [], []
    num_bounds = num_better = 0
    for seed, end in sorted(ends.items()):
        points = [points_of(entries, twin, num_peers, seed) for twin in twins]
        if not any(points):
            continue
        needed = [tokens_to(of_twin, loss_of(end)) for of_twin in points]
        if needed[0] is not None:
            same.append(needed[0].tokens / end["tokens"])
        least = min((one for one in needed if one), key=lambda one: one.tokens, default=None)
        best.append(1.0 if least is None else least.tokens / end["tokens"])
        num_bounds += least is not None and least.is_bound
        num_better += least is None
    losses = tuple(loss_of(ends[seed]) for seed in sorted(ends))
    return Worth(name, rate, losses, tuple(same), tuple(best), num_bounds, num_better)
