"""Charts against the ReLU count, as inline SVG that takes its colours from the page (light or dark)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

from benchmarks.run_files import Step, Trajectory
from benchmarks.units import count

Point = tuple[float, float]

# More dots than this run into one another; the line alone says it then.
MOST_DOTS = 60


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A plot area and its axes. Lengths in SVG user units (CSS pixels at natural size)."""

    width: float
    height: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_range: tuple[float, float]
    left: float = 44
    right: float = 14
    top: float = 12
    bottom: float = 40

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)


def accuracy_chart(trajectory: Trajectory, *, width: float, height: float) -> Markup:
    """Accuracy (percent) against kept ReLUs along the descent, with the networks around it as reference."""
    start = [trajectory.reference] if trajectory.reference else []
    path = [*start, *trajectory.steps]
    training = [step for step in trajectory.steps if step.train_accuracy is not None]
    shown = [step.val_accuracy for step in path] + [step.train_accuracy or 0.0 for step in training]
    shown += [step.val_accuracy for step in (trajectory.baseline, trajectory.final) if step]
    counts = [step.relu_count for step in path] + ([trajectory.final.relu_count] if trajectory.final else [])
    frame = Frame(
        width=width,
        height=height,
        x_ticks=[tick for tick in nice_ticks(min(counts), max(counts), width / 110) if tick >= 0],
        y_ticks=nice_ticks(min(shown), min(max(shown), 100.0), height / 60),
        x_range=padded(min(counts), max(counts)),
    )
    digits = 0 if all(float(tick).is_integer() for tick in frame.y_ticks) else 1
    parts = [axes(frame, lambda tick: f"{tick:.{digits}f}")]
    if trajectory.baseline:
        y = frame.y(trajectory.baseline.val_accuracy)
        parts.append(
            f'<line class="reference" x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    parts.append(polyline(frame, [(s.relu_count, s.train_accuracy or 0.0) for s in training], "train"))
    parts.append(polyline(frame, [(s.relu_count, s.val_accuracy) for s in path], "val"))
    if len(trajectory.steps) <= MOST_DOTS:
        parts += [_dot(frame, step, "dot tuned" if step.finetuned else "dot") for step in trajectory.steps]
    parts += [_dot(frame, step, "dot start", 5) for step in start]
    if trajectory.final:
        parts.append(_dot(frame, trajectory.final, "dot final", 6))
    title = escape(_description(trajectory))
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{title}"><title>{title}</title>'
        f"{''.join(parts)}</svg>"
    )


def nice_ticks(low: float, high: float, most: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]; at least two, about ``most``."""
    span = high - low or max(abs(high), 1.0) * 0.1
    raw = span / max(most, 1.0)
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a margin on both sides."""
    margin = (high - low or max(high, 1.0) * 0.1) * 0.04
    return low - margin, high + margin


def axes(frame: Frame, y_text: Callable[[float], str]) -> str:
    """Grid, ticks and their labels; ReLUs along x, ``y_text`` of a value along y."""
    parts = []
    base = frame.height - frame.bottom
    for tick in frame.y_ticks:
        y = frame.y(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{y_text(tick)}</text>')
    for tick in frame.x_ticks:
        if frame.x_range[0] <= tick <= frame.x_range[1]:
            x = frame.x(tick)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{count(int(tick))}</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{frame.height - 4}" text-anchor="middle">ReLUs kept</text>')
    return "".join(parts)


def polyline(frame: Frame, points: Sequence[Point], kind: str) -> str:
    """A line of the CSS class ``kind`` through at least two points; nothing through fewer."""
    if len(points) < 2:
        return ""
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _dot(frame: Frame, step: Step, kind: str, radius: float = 3.2) -> str:
    label = f"{count(step.relu_count)} ReLUs, validation {step.val_accuracy:.2f} %"
    return (
        f'<circle class="{kind}" cx="{frame.x(step.relu_count):.1f}" cy="{frame.y(step.val_accuracy):.1f}"'
        f' r="{radius}"><title>{label}</title></circle>'
    )


def _description(trajectory: Trajectory) -> str:
    first, last = trajectory.steps[0], trajectory.steps[-1]
    text = (
        f"Validation accuracy along {len(trajectory.steps)} steps of block coordinate descent, from"
        f" {first.val_accuracy:.1f} % at {count(first.relu_count)} ReLUs to {last.val_accuracy:.1f} % at"
        f" {count(last.relu_count)}"
    )
    if trajectory.final:
        text += f"; {trajectory.final.val_accuracy:.1f} % after the last finetuning"
    if trajectory.baseline:
        text += f"; the baseline has {trajectory.baseline.val_accuracy:.1f} %"
    return text
