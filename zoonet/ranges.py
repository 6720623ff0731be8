"""Sets of integers kept as sorted, disjoint, half-open ranges `(start, stop)`.

Data slots are handed out, given back and ticked off in such sets, so that the ledger of a job
with billions of samples stays a handful of pairs.
"""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def normalise(ranges: Iterable[Range]) -> Ranges:
    """Sort, drop empty ranges and join those that touch or overlap."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if stop <= start:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def is_normal(ranges: Ranges) -> bool:
    """Tell whether the ranges are non-negative, non-empty, sorted and apart."""
    ends = -1
    for start, stop in ranges:
        if start <= ends or stop <= start:
            return False
        ends = stop
    return True


def count(ranges: Iterable[Range]) -> int:
    """Number of integers in disjoint ranges."""
    return sum(stop - start for start, stop in ranges)


def listed(ranges: Iterable[Range]) -> str:
    """The integers in words, for people: `3, 7-9`."""
    ends = [(start, stop - 1) for start, stop in normalise(ranges)]
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ends)


def union(left: Iterable[Range], right: Iterable[Range]) -> Ranges:
    """Integers in either."""
    return normalise((*left, *right))


def difference(left: Iterable[Range], right: Iterable[Range]) -> Ranges:
    """Integers in `left` that are not in `right`. Takes time in proportion to their lengths."""
    kept: list[Range] = []
    holes = normalise(right)
    first = 0  # of the holes that do not end before what is looked at
    for start, stop in normalise(left):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        index = first
        while index < len(holes) and holes[index][0] < stop:
            hole_start, hole_stop = holes[index]
            if hole_start > start:
                kept.append((start, hole_start))
            start = max(start, hole_stop)
            index += 1
        if start < stop:
            kept.append((start, stop))
    return tuple(kept)


def overlaps(left: Iterable[Range], right: Iterable[Range]) -> bool:
    """Tell whether any integer is in both."""
    left, right = normalise(left), normalise(right)
    return count(union(left, right)) < count(left) + count(right)


def take(ranges: Iterable[Range], num: int) -> tuple[Ranges, Ranges]:
    """Split off the `num` smallest integers: (taken, rest). Takes fewer where there are fewer."""
    taken: list[Range] = []
    rest: list[Range] = []
    for start, stop in normalise(ranges):
        cut = min(stop, start + max(0, num))
        if cut > start:
            taken.append((start, cut))
            num -= cut - start
        if cut < stop:
            rest.append((cut, stop))
    return tuple(taken), tuple(rest)
