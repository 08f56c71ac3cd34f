"""Latency and bytes against the ReLU count, with the line of least squares, as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from benchmarks.figures import Frame, axes, nice_ticks, padded, polyline
from benchmarks.fit import CostLine, cost_lines
from benchmarks.schema import Results
from benchmarks.summary import measured_subjects, phase_cost
from benchmarks.units import amount, count

WIDTH, HEIGHT = 400.0, 240.0


@dataclass(frozen=True, kw_only=True)
class CostChart:
    """A drawing and its title."""

    title: str
    drawing: Markup


def cost_charts(results: Results) -> tuple[CostChart, ...]:
    """A chart for each line of :func:`benchmarks.fit.cost_lines`, in its order."""
    several = len({subject.model for subject in results.subjects}) > 1
    charts = []
    for entry in cost_lines(results):
        what = "latency" if entry.unit == "s" else "traffic"
        owner = f"{entry.backend}, {entry.model}" if several else entry.backend
        title = f"{owner}: {entry.phase} {what}"
        charts.append(CostChart(title=title, drawing=_draw(results, entry, title)))
    return tuple(charts)


def _draw(results: Results, entry: CostLine, title: str) -> Markup:
    points = []
    for subject in measured_subjects(results, entry.backend, network=entry.network):
        cost = phase_cost(results, entry.backend, subject.name, entry.phase, network=entry.network)
        if subject.model == entry.model and cost is not None:
            value = cost.latency_s.median if entry.unit == "s" else float(cost.sent_bytes.total)
            points.append((float(subject.relu_count), value))
    points.sort()
    low, high = points[0][0], points[-1][0]
    frame = Frame(
        width=WIDTH,
        height=HEIGHT,
        x_ticks=[tick for tick in nice_ticks(low, high, WIDTH / 120) if tick >= 0],
        y_ticks=nice_ticks(0.0, max(value for _, value in points), HEIGHT / 60),
        x_range=padded(low, high),
        left=78,
    )
    line = entry.line
    # A line that would leave the frame below zero is cut there: no cost is negative.
    ends = [(x, max(line.intercept + line.slope * x, 0.0)) for x in (low, high)]
    parts = [axes(frame, lambda tick: amount(tick, entry.unit)), polyline(frame, ends, "fit")]
    parts += [
        f'<circle class="dot cost" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4">'
        f"<title>{count(int(x))} ReLUs: {amount(y, entry.unit)}</title></circle>"
        for x, y in points
    ]
    described = "; ".join(f"{count(int(x))} ReLUs {amount(y, entry.unit)}" for x, y in points)
    label = escape(f"{title}, R² {line.r_squared:.4f}: {described}")
    return Markup(
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"><title>{label}</title>'
        f"{''.join(parts)}</svg>"
    )
