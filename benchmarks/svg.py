"""Plots as inline SVG that takes its colours from the page (light, dark or print)."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from benchmarks.mark_labels import Box, labelled
from benchmarks.plots import Axis, Mark, Plot, Series, text_of, tick_of
from benchmarks.scales import Scale, linear_scale, log_scale

_CHARACTER = 7.2
"""About the width of a digit at the size of the ticks, CSS pixels."""
_LINE = 14.0
"""Height of a line of that size."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A plot area and its scales. Lengths in SVG user units (CSS pixels at natural size)."""

    width: float
    height: float
    x: Scale
    y: Scale
    left: float
    right: float = 16
    top: float = 26
    bottom: float = 42

    def place(self, x: float, y: float) -> tuple[float, float]:
        return (
            self.left + self.x.at(x) * (self.width - self.left - self.right),
            self.height - self.bottom - self.y.at(y) * (self.height - self.top - self.bottom),
        )


def draw(plot: Plot, *, width: float, height: float) -> Markup:
    """The plot at that size; nothing where no mark can be drawn."""
    marks = [mark for series in plot.series for mark in series.marks if plot.drawable(mark)]
    if not marks:
        return Markup("")
    extents = [value for mark in marks for value in (mark.low, mark.y, mark.high) if value is not None]
    y = _scale(plot.y, extents, height / 52, enclosing=True)
    widest = max(len(tick_of(tick, plot.y.unit)) for tick in y.ticks)
    left = max(44.0, 14 + _CHARACTER * widest)
    x = _scale(plot.x, [mark.x for mark in marks], (width - left) / 74)
    frame = _Frame(width=width, height=height, x=x, y=y, left=left)
    label = escape(f"{plot.title}. {plot.alt}")
    drawn = "".join(_series(plot, series, frame) for series in plot.series) + _labels(plot, frame)
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}"><title>{escape(plot.title)}</title>'
        f"{_axes(plot, frame)}{drawn}</svg>"
    )


def _scale(axis: Axis, values: list[float], most: float, *, enclosing: bool = False) -> Scale:
    if axis.log:
        return log_scale([value for value in values if value > 0], most)
    scale = linear_scale(values, most, enclosing=enclosing)
    if axis.unit == "ReLUs":  # a margin left of zero has no ticks
        return Scale(low=scale.low, high=scale.high, ticks=tuple(tick for tick in scale.ticks if tick >= 0))
    return scale


def _axes(plot: Plot, frame: _Frame) -> str:
    parts = []
    base, end = frame.height - frame.bottom, frame.width - frame.right
    for tick in frame.y.ticks:
        y = frame.place(frame.x.low, tick)[1]
        parts.append(f'<line class="grid" x1="{frame.left:g}" x2="{end:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = escape(tick_of(tick, plot.y.unit))
        parts.append(f'<text x="{frame.left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in frame.x.ticks:
        x = frame.place(tick, frame.y.low)[0]
        parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base:g}" y2="{base + 4:g}"/>')
        text = escape(tick_of(tick, plot.x.unit))
        parts.append(f'<text x="{x:.1f}" y="{base + 18:g}" text-anchor="middle">{text}</text>')
    middle = (frame.left + end) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{frame.height - 4:g}" text-anchor="middle">{escape(plot.x.label)}'
        "</text>"
    )
    parts.append(f'<text class="axis" x="0" y="11">{escape(plot.y.label)}</text>')
    return "".join(parts)


def _series(plot: Plot, series: Series, frame: _Frame) -> str:
    marks = [mark for mark in series.marks if plot.drawable(mark)]
    parts = []
    if series.stroke != "none" and len(marks) > 1:
        path = " ".join("{:.1f},{:.1f}".format(*frame.place(mark.x, mark.y)) for mark in marks)
        parts.append(f'<polyline class="{series.stroke}" points="{path}"/>')
    if series.dot != "none":
        parts += [_mark(plot, series, mark, frame) for mark in marks]
    return f'<g class="c-{series.colour}">{"".join(parts)}</g>'


def _mark(plot: Plot, series: Series, mark: Mark, frame: _Frame) -> str:
    x, y = frame.place(mark.x, mark.y)
    parts = []
    if mark.low is not None and mark.high is not None and (mark.low > 0 or not plot.y.log):
        low, high = frame.place(mark.x, mark.low)[1], frame.place(mark.x, mark.high)[1]
        parts.append(f'<line class="spread" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    words = escape(
        f"{series.name}, {series.kind}: {text_of(mark.x, plot.x.unit)}, {text_of(mark.y, plot.y.unit)}"
        + (f" ({mark.label})" if mark.label else "")
    )
    parts.append(
        f'<circle class="{series.dot}" cx="{x:.1f}" cy="{y:.1f}" r="{series.radius:g}"><title>{words}</title></circle>'
    )
    return "".join(parts)


def _labels(plot: Plot, frame: _Frame) -> str:
    def at(mark: Mark) -> tuple[float, float]:
        x, y = frame.place(mark.x, mark.y)
        return x, -y  # y grows downwards here

    area = Box(left=frame.left, right=frame.width, low=frame.bottom - frame.height, high=0)
    return "".join(
        f'<text x="{box.left:.1f}" y="{4 - box.low - _LINE / 2:.1f}">{escape(mark.label)}</text>'
        for mark, box in labelled(plot, at, character=_CHARACTER, line=_LINE, area=area, radius=5)
    )
