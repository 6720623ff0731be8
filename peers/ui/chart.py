"""A line chart in a terminal: braille dots, eight to a character cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

_BLANK: Final = 0x2800
# Bit of the braille dot at (column, row) of a cell, row 0 on top.
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LABEL_CHARS: Final = 8

Point = tuple[float, float]


def chart(
    points: Sequence[Point], *, width: int, height: int, marks: Iterable[float] = ()
) -> list[str]:
    """Draw points (x rising) joined by lines, in `height` lines of `width` characters.

    `marks` are x positions that get a vertical line. The left margin and the last line name the
    ranges. Without at least two points it says so.
    """
    width, height = max(width, _LABEL_CHARS + 10), max(height, 3)
    if len(points) < 2:
        return ["waiting for the first two measurements".center(width)] + [""] * (height - 1)
    canvas = _Canvas(points, columns=width - _LABEL_CHARS - 1, rows=height - 1)
    for x in marks:
        canvas.draw_mark(x)
    for start, stop in itertools.pairwise(points):
        canvas.draw_line(start, stop)
    return _framed(canvas, points, width)


class _Canvas:
    """Dots of a plot area of `columns` x `rows` cells over the range of the points."""

    def __init__(self, points: Sequence[Point], *, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.low_x, self.high_x = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
        self.low_y = min(y for _, y in points)
        self.high_y = max(max(y for _, y in points), self.low_y + 1e-9)
        self._cells = [[_BLANK] * columns for _ in range(rows)]

    def lines(self) -> list[str]:
        """The plot area as text."""
        return ["".join(map(chr, row)) for row in self._cells]

    def draw_mark(self, x: float) -> None:
        """Draw a dotted vertical line."""
        if self.low_x <= x <= self.high_x:
            column, _ = self._dot((x, self.low_y))
            for row in range(0, self.rows * 4, 2):
                self._set(column, row)

    def draw_line(self, start: Point, stop: Point) -> None:
        """Draw a straight line between two points."""
        (column, row), (last_column, last_row) = self._dot(start), self._dot(stop)
        num_dots = max(abs(last_column - column), abs(last_row - row), 1)
        for step in range(num_dots + 1):
            share = step / num_dots
            self._set(
                round(column + (last_column - column) * share),
                round(row + (last_row - row) * share),
            )

    def _dot(self, point: Point) -> tuple[int, int]:
        share_x = (point[0] - self.low_x) / (self.high_x - self.low_x)
        share_y = (self.high_y - point[1]) / (self.high_y - self.low_y)
        return round(share_x * (self.columns * 2 - 1)), round(share_y * (self.rows * 4 - 1))

    def _set(self, column: int, row: int) -> None:
        self._cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]


def _framed(canvas: _Canvas, points: Sequence[Point], width: int) -> list[str]:
    lines = canvas.lines()
    labels = [""] * len(lines)
    labels[0], labels[-1] = f"{canvas.high_y:.3f}", f"{canvas.low_y:.3f}"
    framed = [f"{label:>{_LABEL_CHARS}}│{line}" for label, line in zip(labels, lines, strict=True)]
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    room = width - _LABEL_CHARS - 1 - len(first)
    return [*framed, " " * (_LABEL_CHARS + 1) + first + last.rjust(max(room, 0))]
