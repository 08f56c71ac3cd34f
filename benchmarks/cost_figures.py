"""Latency and bytes against the ReLU count: a figure a network, link, phase and unit, all backends in it."""

from __future__ import annotations

from benchmarks.bars import MEASURES, Measure
from benchmarks.fit import CostLine, cost_lines
from benchmarks.labels import place
from benchmarks.palette import backend_colours
from benchmarks.plots import Axis, Dot, Mark, Plot, Series, described, key_of
from benchmarks.scales import spaced
from benchmarks.schema import Kind, Phase, Results
from benchmarks.summary import measured_subjects, phase_cost

PHASES: tuple[Phase, ...] = ("online", "offline")
KINDS: tuple[Kind, ...] = ("measured", "modelled")
DOTS: dict[str, Dot] = {"measured": "solid", "modelled": "hollow"}
MIN_COUNTS = 2
"""One count shows no course."""


def cost_plots(results: Results) -> tuple[Plot, ...]:
    """The figures in the order network, link, phase, unit; those without two ReLU counts are left out."""
    models = tuple(dict.fromkeys(subject.model for subject in results.subjects))
    lines = cost_lines(results)
    found = []
    for model in models:
        for network in results.networks:
            for phase in PHASES:
                for measure in MEASURES:
                    series = _series(results, lines, model, network, phase, measure)
                    counts = {mark.x for one in series for mark in one.marks if one.kind != "fit"}
                    if len(counts) >= MIN_COUNTS:
                        found.append(_plot(results, series, model, network, phase, measure))
    return tuple(found)


def _plot(
    results: Results, series: tuple[Series, ...], model: str, network: str, phase: Phase, measure: Measure
) -> Plot:
    several = len({subject.model for subject in results.subjects}) > 1
    owner = f"{model}: " if several else ""
    x = Axis(label="ReLUs kept", unit="ReLUs", log=all(mark.x > 0 for one in series for mark in one.marks))
    y = Axis(label="seconds" if measure.unit == "s" else "bytes of all roles", unit=measure.unit, log=True)
    return Plot(
        key=key_of("cost", *((model,) if several else ()), network, phase, measure.name),
        title=f"{owner}{phase.capitalize()} {measure.name}{place(results, network)}",
        alt=described(series, x, y),
        x=x,
        y=y,
        series=series,
    )


def _series(
    results: Results, lines: tuple[CostLine, ...], model: str, network: str, phase: Phase, measure: Measure
) -> tuple[Series, ...]:
    colours = backend_colours(results.backends)
    found = []
    for backend in results.backends:
        for kind in KINDS:
            marks = _marks(results, backend, model, network, phase, kind, measure)
            if not any(mark.y for mark in marks):
                continue
            if kind == "measured":
                found += [
                    _fit(line, marks, colours[backend])
                    for line in lines
                    if (line.backend, line.model, line.network, line.phase, line.unit)
                    == (backend, model, network, phase, measure.unit)
                ]
            name = backend if kind == "measured" else f"{backend}, modelled"
            dot = DOTS[kind]
            found.append(Series(name=name, kind=kind, marks=marks, colour=colours[backend], dot=dot))
    return tuple(found)


def _marks(
    results: Results, backend: str, model: str, network: str, phase: Phase, kind: Kind, measure: Measure
) -> tuple[Mark, ...]:
    marks = []
    for subject in measured_subjects(results, backend, network=network, kind=kind):
        cost = phase_cost(results, backend, subject.name, phase, network=network, kind=kind)
        if subject.model != model or cost is None:
            continue
        ends = (
            (cost.latency_s.min, cost.latency_s.max) if measure.unit == "s" and cost.latency_s.runs > 1 else (None,) * 2
        )
        marks.append(Mark(x=float(subject.relu_count), y=measure.of_phase(cost), low=ends[0], high=ends[1]))
    return tuple(sorted(marks, key=lambda mark: mark.x))


def _fit(entry: CostLine, marks: tuple[Mark, ...], colour: str) -> Series:
    """The line between the outermost points; where it would fall to nothing or below it is not drawn."""
    low, high = marks[0].x, marks[-1].x
    log = low > 0
    points = ((x, entry.line.intercept + entry.line.slope * x) for x in spaced(low, high, 48, log=log))
    return Series(
        name=f"{entry.backend}, fit (R² {entry.line.r_squared:.4f})",
        kind="fit",
        marks=tuple(Mark(x=x, y=y) for x, y in points if y > 0),
        colour=colour,
        dot="none",
        stroke="dashed",
        in_legend=False,
    )
