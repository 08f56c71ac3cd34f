"""Where labels of points stand, so that they cover neither each other, nor a point, nor the edge of a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.plots import Mark, Plot

_GAP = 3.0
_ROUNDS = 8
# Steps from the point: sides (1 right, -1 left, 0 centred) and lines up; the first that is free is taken.
_STEPS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 2), (1, -2), (-1, 2), (-1, -2))


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle, y upwards."""

    left: float
    right: float
    low: float
    high: float

    def shared(self, other: Box) -> float:
        """The area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)


def labelled(
    plot: Plot, at: Callable[[Mark], tuple[float, float]], *, character: float, line: float, area: Box, radius: float
) -> list[tuple[Mark, Box]]:
    """Every mark of the plot that has a label, and the box for it.

    at: where a mark is drawn, y upwards. character, line: about a character's width and a line's height, in the same
    unit as ``area`` and the ``radius`` of a point.
    """
    marks = [mark for series in plot.series if series.dot != "none" for mark in series.marks if plot.drawable(mark)]
    named = [mark for mark in marks if mark.label]
    boxes = places(
        [at(mark) for mark in named],
        [character * len(mark.label) for mark in named],
        line,
        area=area,
        radius=radius,
        others=[at(mark) for mark in marks if not mark.label],
    )
    return list(zip(named, boxes, strict=True))


def places(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    *,
    area: Box,
    radius: float,
    others: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """A box for the label of each point, in the order of the points and all in one unit of length.

    One label after the other, in rounds until none moves, takes the first of twelve places around its point that is
    inside ``area`` and free of all other labels and points, also of ``others`` without labels; where none is, the one
    that covers least.
    """
    dots = [Box(left=x - radius, right=x + radius, low=y - radius, high=y + radius) for x, y in (*points, *others)]
    offered = [
        [_beside(point, width, height, radius + _GAP, *step) for step in _STEPS]
        for point, width in zip(points, widths, strict=True)
    ]
    chosen = [boxes[0] for boxes in offered]
    for _ in range(_ROUNDS):
        before = list(chosen)
        for number, boxes in enumerate(offered):
            obstacles = dots + chosen[:number] + chosen[number + 1 :]
            chosen[number] = min(boxes, key=lambda box: _covered(box, obstacles) + _outside(box, area))
        if chosen == before:
            break
    return chosen


def _covered(box: Box, obstacles: Sequence[Box]) -> float:
    return sum(map(box.shared, obstacles))


def _outside(box: Box, area: Box) -> float:
    return box.shared(box) - box.shared(area)


def _beside(point: tuple[float, float], width: float, height: float, gap: float, side: int, lines: int) -> Box:
    # A label to the side may reach into the point's height, one above or below may not.
    distance = gap if side == 0 else gap / 2
    x = point[0] + side * (gap + width / 2)
    y = point[1] + (0 if lines == 0 else (1 if lines > 0 else -1) * (distance - height / 2)) + lines * height
    return Box(left=x - width / 2, right=x + width / 2, low=y - height / 2, high=y + height / 2)
