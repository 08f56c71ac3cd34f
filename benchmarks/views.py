"""What the report shows, made ready: bars with their widths, tiles and table cells with their text.

Nothing is measured or rounded elsewhere: a view takes figures from :class:`benchmarks.schema.Results` and gives text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.labels import extremes, headline_subject, subject_label
from benchmarks.layer_views import KIND_NAMES, RELU, LayerTable, layer_tables, sums_by_kind
from benchmarks.schema import PHASES, Phase, Results, Subject
from benchmarks.summary import LayerPhaseCost, PhaseCost, measured_subjects, phase_cost

PLAINTEXT = "plaintext"
ROLE_NAMES = ("client", "server", "dealer")
BYTE_SOURCES = {
    "tcp_info": "bytes counted by the operating system at each socket",
    "communicator": "bytes as the framework's own communicator estimates them",
    "channel": "bytes as handed to the sockets, framing included",
}


def _latency(cost: PhaseCost) -> float:
    return cost.latency_s.median


def _sent(cost: PhaseCost | LayerPhaseCost) -> float:
    return float(cost.sent_bytes.total)


def _layer_seconds(cost: LayerPhaseCost) -> float:
    return cost.seconds


def _byte_text(value: float) -> str:
    return units.bytes_(round(value))


Text = Callable[[float], str]
MEASURES: tuple[tuple[str, Callable[[PhaseCost], float], Callable[[LayerPhaseCost], float], Text], ...] = (
    ("latency", _latency, _layer_seconds, units.seconds),
    ("traffic", _sent, _sent, _byte_text),
)
"""What is compared: its name, the figure of a phase, the figure of a layer, and the figure as text."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar. ``width``: percent of the track. ``kind``: the CSS class that colours it."""

    kind: str
    width: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart: its label, its parts, its value as text, and a note behind it."""

    label: str
    segments: tuple[Segment, ...]
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars over one scale. ``legend``: (CSS class, text) for each kind of part."""

    title: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()
    change: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline figure before and after."""

    title: str
    before: str | None
    after: str
    change: str | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class BackendView:
    """Everything the report says of one backend. ``sends``: whether it has any traffic.

    bound: what removing ReLUs can save at most.
    """

    name: str
    note: str
    sends: bool
    charts: tuple[Chart, ...]
    costs: tuple[PhaseCost, ...]
    kinds: tuple[Chart, ...]
    bound: str
    layers: tuple[LayerTable, ...]


def tiles(results: Results) -> tuple[Tile, ...]:
    """ReLUs, accuracy, then latency and bytes of each secure backend: all ReLUs against the fewest."""
    full, smallest = extremes(results)
    removed = f"{units.percent(1 - smallest.relu_count / smallest.relu_total)} removed" if smallest.relu_total else None
    found = [
        Tile(
            title="ReLUs",
            before=units.count(smallest.relu_total),
            after=units.count(smallest.relu_count),
            change=removed,
        )
    ]
    trained = headline_subject(results)
    if trained.test_accuracy is not None:
        before = next((s for s in results.subjects if s.model == trained.model and s.mask == "all"), None)
        known = None if before is None or before.name == trained.name else before.test_accuracy
        change = None
        if known is not None:
            change = f"{100 * (trained.test_accuracy - known):+.2f} points".replace("-", "−")
        found.append(
            Tile(
                title="Test accuracy",
                before=None if known is None else units.percent(known),
                after=units.percent(trained.test_accuracy),
                change=change,
                note=f"on {units.count(trained.test_images)} images",
            )
        )
    for backend in secure_backends(results):
        after = phase_cost(results, backend, smallest.name, "online")
        before_cost = None if full is None else phase_cost(results, backend, full.name, "online")
        if after is None:
            continue
        for title, measure, layer_measure, text in MEASURES:
            found.append(
                Tile(
                    title=f"Online {title}",
                    before=None if before_cost is None else text(measure(before_cost)),
                    after=text(measure(after)),
                    change=None if before_cost is None else units.change(measure(before_cost), measure(after)),
                    note=f"{backend}, one image{_relu_part(results, backend, (full, smallest), layer_measure, text)}",
                )
            )
    return tuple(found)


def backend_views(results: Results) -> tuple[BackendView, ...]:
    """One view a backend, the secure ones first."""
    secure = secure_backends(results)
    names = (*secure, *(name for name in results.backends if name not in secure))
    return tuple(_backend_view(results, name) for name in names)


def secure_backends(results: Results) -> tuple[str, ...]:
    """The backends that hide something: all but plaintext."""
    return tuple(name for name in results.backends if name != PLAINTEXT)


def _backend_view(results: Results, name: str) -> BackendView:
    subjects = measured_subjects(results, name)
    found = (phase_cost(results, name, subject.name, phase) for phase in PHASES for subject in subjects)
    costs = tuple(cost for cost in found if cost is not None and (cost.latency_s.max or cost.sent_bytes.total))
    phases: tuple[Phase, ...] = ("online", "offline")
    charts = [chart for phase in phases if (chart := _latency_chart(results, costs, phase)) is not None]
    charts += [chart for phase in phases if (chart := _bytes_chart(results, costs, phase)) is not None]
    sources = {BYTE_SOURCES.get(cost.byte_source, cost.byte_source) for cost in costs if cost.byte_source}
    return BackendView(
        name=name,
        note="; ".join(sorted(sources)),
        sends=any(cost.sent_bytes.total for cost in costs),
        charts=tuple(charts),
        costs=costs,
        kinds=_kind_charts(results, name),
        bound=_bound(results, name),
        layers=layer_tables(results, name),
    )


def _latency_chart(results: Results, costs: Sequence[PhaseCost], phase: Phase) -> Chart | None:
    chosen = [cost for cost in costs if cost.phase == phase]
    longest = max((cost.latency_s.median for cost in chosen), default=0.0)
    if longest == 0:
        return None
    bars = tuple(
        Bar(
            label=subject_label(cost.subject),
            segments=(Segment(kind=_shade(cost.subject), width=100 * cost.latency_s.median / longest, label=phase),),
            value=units.seconds(cost.latency_s.median),
            note=f"{units.seconds(cost.latency_s.min)} to {units.seconds(cost.latency_s.max)}"
            f" in {cost.latency_s.runs} runs",
        )
        for cost in chosen
    )
    return Chart(title=f"{phase.capitalize()} latency", bars=bars, change=_change(results, chosen, _latency))


def _bytes_chart(results: Results, costs: Sequence[PhaseCost], phase: Phase) -> Chart | None:
    chosen = [cost for cost in costs if cost.phase == phase]
    most = max((cost.sent_bytes.total for cost in chosen), default=0)
    if most == 0:
        return None
    bars = tuple(
        Bar(
            label=subject_label(cost.subject),
            segments=_segments(
                ((role, role, getattr(cost.sent_bytes, role)) for role in ROLE_NAMES),
                most,
                _byte_text,
            ),
            value=units.bytes_(cost.sent_bytes.total),
            note=f"{units.count(cost.rounds)} rounds",
        )
        for cost in chosen
    )
    senders = [role for role in ROLE_NAMES if any(getattr(cost.sent_bytes, role) for cost in chosen)]
    legend = tuple((role, f"sent by {role}") for role in senders)
    return Chart(
        title=f"{phase.capitalize()} traffic", bars=bars, legend=legend, change=_change(results, chosen, _sent)
    )


def _kind_charts(results: Results, name: str) -> tuple[Chart, ...]:
    charts = []
    full, smallest = extremes(results)
    for title, _, measure, text in MEASURES:
        sums = sums_by_kind(results, name, measure)
        totals = {subject: sum(kinds.values()) for subject, kinds in sums.items()}
        most = max(totals.values(), default=0.0)
        if most == 0:
            continue
        bars = tuple(
            Bar(
                label=subject_label(results.subject(subject)),
                segments=_segments(((f"kind{i}", kind, kinds[kind]) for i, kind in enumerate(KIND_NAMES)), most, text),
                value=text(totals[subject]),
                note=f"{RELU} {text(kinds[RELU])}, {units.percent(kinds[RELU] / (totals[subject] or 1), 0)}",
            )
            for subject, kinds in sums.items()
        )
        legend = tuple(
            (f"kind{i}", kind) for i, kind in enumerate(KIND_NAMES) if any(kinds[kind] for kinds in sums.values())
        )
        change = None
        if full is not None and full.name in sums and smallest.name in sums:
            change = units.change(sums[full.name][RELU], sums[smallest.name][RELU])
        charts.append(
            Chart(
                title=f"Online {title} by layer",
                bars=bars,
                legend=legend,
                change=change and f"{RELU} {change}",
            )
        )
    return tuple(charts)


def _bound(results: Results, name: str) -> str:
    full = next((subject.name for subject in results.subjects if subject.mask == "all"), "")
    shares = []
    for title, _, measure, _ in MEASURES:
        kinds = sums_by_kind(results, name, measure).get(full, {})
        total = sum(kinds.values())
        if total:
            shares.append(f"{units.percent(kinds[RELU] / total, 0)} of its online {title}")
    if not shares:
        return ""
    return f"With all ReLUs, they are {' and '.join(shares)}; removing some can save no more than that."


def _relu_part(
    results: Results,
    name: str,
    subjects: Iterable[Subject | None],
    measure: Callable[[LayerPhaseCost], float],
    text: Text,
) -> str:
    sums = sums_by_kind(results, name, measure)
    parts = [text(sums[s.name][RELU]) for s in subjects if s is not None and s.name in sums]
    return f"; ReLUs alone {' → '.join(parts)}" if parts else ""


def _segments(parts: Iterable[tuple[str, str, float]], most: float, text: Text) -> tuple[Segment, ...]:
    return tuple(
        Segment(kind=css, width=100 * value / most, label=f"{label}: {text(value)}")
        for css, label, value in parts
        if value
    )


def _shade(subject: Subject) -> str:
    return "full" if subject.mask == "all" else "linearized"


def _change(results: Results, costs: Sequence[PhaseCost], measure: Callable[[PhaseCost], float]) -> str | None:
    full, smallest = extremes(results)
    values = {cost.subject.name: measure(cost) for cost in costs}
    if full is None or full.name not in values or smallest.name not in values:
        return None
    return units.change(values[full.name], values[smallest.name])
