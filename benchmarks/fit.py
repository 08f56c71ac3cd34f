"""How cost follows the ReLU count: a straight line by least squares for each backend, computed from the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from benchmarks.schema import Phase, Results
from benchmarks.summary import PhaseCost, measured_subjects, phase_cost

MIN_POINTS = 3
"""Fewer counts than this always lie on a line, or nearly."""

Unit = Literal["s", "bytes"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """``y = intercept + slope * x``.

    r_squared: the part of the variance of y that the line explains; 1 where y does not vary.
    """

    slope: float
    intercept: float
    r_squared: float
    points: int


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """A line of one backend's cost, for one image, against the kept ReLUs of one network.

    unit: of the cost, seconds or the bytes of all roles together; ``slope`` is that a ReLU.
    """

    backend: str
    model: str
    network: str
    phase: Phase
    unit: Unit
    line: Line


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line through the points; ``x`` must hold at least two values that differ."""
    count = len(x)
    mean_x, mean_y = fsum(x) / count, fsum(y) / count
    spread = fsum((a - mean_x) ** 2 for a in x)
    assert count == len(y), f"{count} abscissae for {len(y)} ordinates"
    assert spread > 0, "one abscissa determines no line"
    slope = fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    variance = fsum((b - mean_y) ** 2 for b in y)
    left = fsum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return Line(slope=slope, intercept=intercept, r_squared=1 - left / variance if variance > 0 else 1.0, points=count)


def cost_lines(results: Results) -> tuple[CostLine, ...]:
    """A line a backend, model, network profile, phase and unit, where at least three different counts were measured.

    Costs that are nothing at each count (the offline phase of plaintext) have no line.
    """
    found = []
    models = tuple(dict.fromkeys(subject.model for subject in results.subjects))
    phases: tuple[Phase, ...] = ("online", "offline")
    units: tuple[tuple[Unit, Callable[[PhaseCost], float]], ...] = (
        ("s", lambda cost: cost.latency_s.median),
        ("bytes", lambda cost: float(cost.sent_bytes.total)),
    )
    for backend in results.backends:
        for model in models:
            for network in results.networks:
                names = [
                    subject.name
                    for subject in measured_subjects(results, backend, network=network)
                    if subject.model == model
                ]
                for phase in phases:
                    seen = (phase_cost(results, backend, name, phase, network=network) for name in names)
                    costs = [cost for cost in seen if cost is not None]
                    counts = [float(cost.subject.relu_count) for cost in costs]
                    if len(set(counts)) < MIN_POINTS:
                        continue
                    for unit, measure in units:
                        values = [measure(cost) for cost in costs]
                        if any(values):
                            found.append(
                                CostLine(
                                    backend=backend,
                                    model=model,
                                    network=network,
                                    phase=phase,
                                    unit=unit,
                                    line=fit_line(counts, values),
                                )
                            )
    return tuple(found)
