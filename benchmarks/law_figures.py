"""Figures of the cost law and of the floor: predicted against measured, and measured over floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import Bar, Chart, segments
from benchmarks.cost_law import Prediction
from benchmarks.floor import Floor
from benchmarks.labels import place, subject_label
from benchmarks.law_view import LawView
from benchmarks.palette import backend_colours
from benchmarks.plots import Axis, Dot, Mark, Plot, Series, Stroke, described, key_of
from benchmarks.schema import Results

PHASE_DOTS: dict[str, Dot] = {"online": "solid", "offline": "hollow"}
PARTS = (("full", "link"), ("kind1", "plaintext"), ("accent", "above the floor"))


@dataclass(frozen=True, kw_only=True)
class LawFigures:
    """``predicted``: None where nothing was predicted. floors: one a backend and link."""

    predicted: Plot | None
    floors: tuple[Chart, ...]


def law_figures(results: Results, view: LawView) -> LawFigures:
    """The figures of what ``view`` says of ``results``."""
    return LawFigures(predicted=_predicted(results, view), floors=_floor_charts(results, view.floors))


def _predicted(results: Results, view: LawView) -> Plot | None:
    """Every held-back point: measured along, predicted up; on the line the two are equal."""
    shown = [entry for entry in view.predictions if entry.predicted_s > 0]
    if not shown:
        return None
    colours = backend_colours(results.backends)
    found = []
    for backend in dict.fromkeys(entry.backend for entry in shown):
        for phase, dot in PHASE_DOTS.items():
            marks = tuple(_mark(entry) for entry in shown if (entry.backend, entry.phase) == (backend, phase))
            if marks:
                name = f"{backend}, {phase}"
                found.append(Series(name=name, kind="predicted", marks=marks, colour=colours[backend], dot=dot))
    least = min(min(entry.measured_s, entry.predicted_s) for entry in shown)
    most = max(max(entry.measured_s, entry.predicted_s) for entry in shown)
    strokes: tuple[tuple[float, str, Stroke], ...] = (
        (1.0, "as measured", "solid"),
        (1 + view.goal, f"{units.percent(view.goal, 0)} off", "dashed"),
        (1 - view.goal, "", "dashed"),
    )
    lines = tuple(
        Series(
            name=name or strokes[1][1],
            kind="fit",
            marks=(Mark(x=least, y=factor * least), Mark(x=most, y=factor * most)),
            colour="soft",
            dot="none",
            stroke=stroke,
            in_legend=bool(name),
        )
        for factor, name, stroke in strokes
    )
    x, y = Axis(label="measured", unit="s", log=True), Axis(label="predicted", unit="s", log=True)
    return Plot(
        key="law-predicted",
        title="Predicted against measured latency, held-back ReLU counts",
        alt=described(found, x, y),
        x=x,
        y=y,
        series=(*lines, *found),
    )


def _mark(entry: Prediction) -> Mark:
    return Mark(x=entry.measured_s, y=entry.predicted_s)


def _floor_charts(results: Results, floors: Sequence[Floor]) -> tuple[Chart, ...]:
    """How many times its floor each measurement took, and what the floor is made of."""
    found = []
    for backend in dict.fromkeys(entry.backend for entry in floors):
        for network in dict.fromkeys(entry.network for entry in floors):
            chosen = [e for e in floors if (e.backend, e.network) == (backend, network) and e.plaintext_s is not None]
            bars = tuple(_floor_bar(entry) for entry in chosen if entry.ratio is not None)
            if bars:
                seen = {part.label for bar in bars for part in bar.segments}
                found.append(
                    Chart(
                        key=key_of("floor", backend, network),
                        title=f"{backend}: online latency over its floor{place(results, network)}",
                        unit="times",
                        bars=bars,
                        legend=tuple(part for part in PARTS if part[1] in seen),
                    )
                )
    return tuple(found)


def _floor_bar(entry: Floor) -> Bar:
    """The floor's parts and what lies above it, in floors; one that was undercut stands whole."""
    above = max(entry.measured_s - entry.floor_s, 0.0)
    values = (entry.link_s, entry.plaintext_s or 0.0, above)
    return Bar(
        label=subject_label(entry.subject),
        segments=segments(
            (colour, label, value / entry.floor_s) for (colour, label), value in zip(PARTS, values, strict=True)
        ),
        value=f"{units.significant(entry.ratio or 0.0)}×",
        note=f"{units.seconds(entry.measured_s)} over {units.seconds(entry.floor_s)}",
    )
