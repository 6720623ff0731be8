"""Sharing out chunks: whole numbers in proportion to weights, and runs of them.

Pure, and in integers only, so that it comes out the same on every machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

Runs = list[tuple[int, int]]  # (stop, who): whose the chunks are up to there


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` into whole parts in proportion to the weights, by largest remainders.

    Of equal remainders the first comes first. Where all weights are zero they count as equal.
    """
    if not any(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(parts)), key=lambda at: (-(total * weights[at] % whole), at))
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts


class HandOut:
    """Deals `total` chunks, in their order, to takers: to each a number by its weight."""

    def __init__(self, takers: Sequence[int], weights: Sequence[int], total: int) -> None:
        parts = apportion(total, weights) if takers else []
        self._left = deque((taker, num) for taker, num in zip(takers, parts, strict=True) if num)

    def take(self, first: int, stop: int) -> Runs:
        """Deal the next chunks, which are those of [first, stop)."""
        runs: Runs = []
        while first < stop:
            taker, num = self._left.popleft()
            end = min(stop, first + num)
            if first + num > stop:
                self._left.appendleft((taker, first + num - stop))
            runs.append((end, taker))
            first = end
        return runs


def aligned(first: int, columns: Sequence[Runs]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Cut several columns of runs, all from `first` to one end, wherever any of them is cut.

    Gives (first, stop, who in each column) for each piece, in order.
    """
    at = [0] * len(columns)
    for stop in sorted({stop for runs in columns for stop, _ in runs}):
        yield first, stop, tuple(runs[now][1] for runs, now in zip(columns, at, strict=True))
        for number, runs in enumerate(columns):
            if runs[at[number]][0] == stop:
                at[number] += 1
        first = stop
