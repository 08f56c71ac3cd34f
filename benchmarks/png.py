"""Figures as PNG images in light colours, drawn by matplotlib from what the page draws itself from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bars import Chart
from benchmarks.kept_maps import MapFigure
from benchmarks.layer_figures import LayerFigure
from benchmarks.mark_labels import Box, labelled
from benchmarks.palette import LIGHT
from benchmarks.plots import Axis, Mark, Plot, Unit, tick_of
from pi_runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a dollar
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "grid.color": LIGHT["line"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 160,
}
_LABEL = 8
"""Size of a point's label, points; a character is some 0.6 of it wide."""
_DASHES = {"solid": "-", "dashed": "--", "none": "none"}


def save_png(figure: Plot | Chart | LayerFigure | MapFigure, path: Path) -> None:
    """Draws a figure to ``path``, whole or not at all; equal figures give equal files.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        match figure:
            case Plot():
                drawn = _plot(figure)
            case Chart():
                drawn = _bars(figure)
            case LayerFigure():
                drawn = _layers(figure)
            case MapFigure():
                drawn = _maps(figure)
        with replacing(path) as temporary:
            drawn.savefig(temporary, format="png", metadata={"Software": None})


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plot(plot: Plot) -> Figure:
    figure = _new(6.4, 4.2)
    axes = figure.subplots()
    for series in plot.series:
        marks = [mark for mark in series.marks if plot.drawable(mark)]
        colour = LIGHT[series.colour]
        xs, ys = [mark.x for mark in marks], [mark.y for mark in marks]
        axes.plot(
            xs,
            ys,
            color=colour,
            linewidth=1.4,
            linestyle=_DASHES[series.stroke],
            marker="none" if series.dot == "none" else "o",
            markersize=1.6 * series.radius,
            markerfacecolor="white" if series.dot == "hollow" else colour,
            label=series.name if series.in_legend else None,
            zorder=2 if series.dot == "none" else 3,
        )
        for mark in marks:
            if mark.low is not None and mark.high is not None and series.dot != "none":
                axes.vlines(mark.x, mark.low, mark.high, color=colour, linewidth=1, alpha=0.6)
    axes.set_title(plot.title)
    for axis, spec in ((axes.xaxis, plot.x), (axes.yaxis, plot.y)):
        _scale(axes, axis, spec)
    axes.grid(alpha=0.8)
    _mark_labels(figure, axes, plot)
    if any(series.in_legend for series in plot.series):
        axes.legend()
    return figure


def _mark_labels(figure: Figure, axes: Axes, plot: Plot) -> None:
    if not any(mark.label for series in plot.series for mark in series.marks):
        return
    figure.draw_without_rendering()  # the layout is known from here
    scale = 72 / figure.dpi

    def at(mark: Mark) -> tuple[float, float]:
        x, y = axes.transData.transform((mark.x, mark.y))
        return scale * x, scale * y

    extent = axes.get_window_extent()
    area = Box(left=scale * extent.x0, right=scale * extent.x1, low=scale * extent.y0, high=scale * extent.y1)
    for mark, box in labelled(plot, at, character=0.6 * _LABEL, line=1.3 * _LABEL, area=area, radius=4):
        x, y = at(mark)
        offset = (box.left - x, box.low - y)
        text = axes.annotate(mark.label, (mark.x, mark.y), offset, textcoords="offset points", fontsize=_LABEL)
        text.set_in_layout(False)


def _scale(axes: Axes, axis: Any, spec: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_label_text(spec.label)
    if spec.log:
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: tick_of(value, spec.unit))


def _bars(chart: Chart) -> Figure:
    figure = _new(6.4, 0.9 + 0.34 * len(chart.bars))
    axes = figure.subplots()
    for row, bar in enumerate(chart.bars):
        start = 0.0
        for part in bar.segments:
            axes.barh(
                row,
                part.value,
                left=start,
                height=0.62,
                color=LIGHT[part.kind],
                alpha=0.45 if bar.modelled else 1.0,
                hatch="///" if bar.modelled else None,
                edgecolor="white",
                linewidth=0.4,
            )
            start += part.value
        axes.text(start + 0.01 * chart.most, row, bar.value, va="center", fontsize=8)
    _labels(axes, [bar.label for bar in chart.bars])
    axes.set_xlim(0, 1.16 * chart.most)
    axes.xaxis.set_major_formatter(lambda value, _: tick_of(value, chart.unit))
    axes.set_title(chart.title)
    _legend(figure, chart.legend)
    return figure


def _layers(chart: LayerFigure) -> Figure:
    panels = chart.panels
    figure = _new(3.2 + 3.2 * len(panels), 1.0 + 0.19 * len(chart.lines))
    drawn: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(drawn, panels, strict=True):
        rows, starts, widths, colours = [], [], [], []
        for row, line in enumerate(chart.lines):
            start = 0.0
            for part in panel.segments(line):
                rows.append(row)
                starts.append(start)
                widths.append(part.value)
                colours.append(LIGHT[part.kind])
                start += part.value
        axes.barh(rows, widths, left=starts, height=0.72, color=colours)
        floors = [(row, line.floor_s) for row, line in enumerate(chart.lines) if line.floor_s is not None]
        if panel.unit == "s" and floors:
            at, least = zip(*floors, strict=True)
            axes.vlines(
                least, [row - 0.45 for row in at], [row + 0.45 for row in at], color=LIGHT["ink"], linewidth=1.2
            )
        axes.set_ylim(-0.8, len(chart.lines) - 0.2)
        axes.xaxis.set_major_formatter(_unit_text(panel.unit))
        axes.set_title(panel.title)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    _labels(drawn[0], [line.layer for line in chart.lines])
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=10)
    _legend(figure, chart.legend)
    return figure


def _maps(figure_of: MapFigure) -> Figure:
    import numpy as np

    columns = min(6, len(figure_of.panels))
    lines = -(-len(figure_of.panels) // columns)
    figure = _new(1.35 * columns + 0.9, 1.5 * lines + 0.5)
    drawn: Any = figure.subplots(lines, columns, squeeze=False)
    image = None
    for axes in drawn.flat:
        axes.set_axis_off()
    for axes, panel in zip(drawn.flat, figure_of.panels, strict=False):
        shares = np.array(panel.shares).reshape(panel.height, panel.width)
        image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100 * figure_of.most, interpolation="nearest")
        axes.set_title(f"{panel.layer}\n{panel.relu_count:,} of {panel.elements:,}", fontsize=6)
    if image is not None:
        bar = figure.colorbar(image, ax=drawn, shrink=0.6)
        bar.set_label("kept of a location's channels, %", fontsize=8)
    figure.suptitle(figure_of.title, x=0.01, ha="left", fontsize=10)
    return figure


def _unit_text(unit: Unit) -> Any:
    return lambda value, _: tick_of(value, unit)


def _labels(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, legend: tuple[tuple[str, str], ...]) -> None:
    from matplotlib.patches import Patch

    if legend:
        handles = [Patch(color=LIGHT[colour], label=text) for colour, text in legend]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
