"""What the report says of each backend, made ready: bars with their widths and table cells with their text.

Nothing is measured or rounded elsewhere: a view takes figures from :class:`benchmarks.schema.Results` and gives text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import MEASURES, Bar, Chart, Segment, byte_text, latency, segments, sent
from benchmarks.labels import extremes, subject_label
from benchmarks.layer_views import KIND_NAMES, RELU, LayerTable, layer_tables, sums_by_kind
from benchmarks.schema import PHASES, Phase, Results, Subject
from benchmarks.summary import PhaseCost, measured_subjects, phase_cost
from benchmarks.tiles import secure_backends

ROLE_NAMES = ("client", "server", "dealer")
BYTE_SOURCES = {
    "tcp_info": "bytes counted by the operating system at each socket",
    "communicator": "bytes as the framework's own communicator estimates them",
    "channel": "bytes as handed to the sockets, framing included",
}


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


def backend_views(results: Results) -> tuple[BackendView, ...]:
    """One view a backend, the secure ones first."""
    secure = secure_backends(results)
    names = (*secure, *(name for name in results.backends if name not in secure))
    return tuple(_backend_view(results, name) for name in names)


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
    return Chart(title=f"{phase.capitalize()} latency", bars=bars, change=_change(results, chosen, latency))


def _bytes_chart(results: Results, costs: Sequence[PhaseCost], phase: Phase) -> Chart | None:
    chosen = [cost for cost in costs if cost.phase == phase]
    most = max((cost.sent_bytes.total for cost in chosen), default=0)
    if most == 0:
        return None
    bars = tuple(
        Bar(
            label=subject_label(cost.subject),
            segments=segments(
                ((role, role, getattr(cost.sent_bytes, role)) for role in ROLE_NAMES),
                most,
                byte_text,
            ),
            value=units.bytes_(cost.sent_bytes.total),
            note=f"{units.count(cost.rounds)} rounds",
        )
        for cost in chosen
    )
    senders = [role for role in ROLE_NAMES if any(getattr(cost.sent_bytes, role) for cost in chosen)]
    legend = tuple((role, f"sent by {role}") for role in senders)
    return Chart(title=f"{phase.capitalize()} traffic", bars=bars, legend=legend, change=_change(results, chosen, sent))


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
                segments=segments(((f"kind{i}", kind, kinds[kind]) for i, kind in enumerate(KIND_NAMES)), most, text),
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


def _shade(subject: Subject) -> str:
    return "full" if subject.mask == "all" else "linearized"


def _change(results: Results, costs: Sequence[PhaseCost], measure: Callable[[PhaseCost], float]) -> str | None:
    full, smallest = extremes(results)
    values = {cost.subject.name: measure(cost) for cost in costs}
    if full is None or full.name not in values or smallest.name not in values:
        return None
    return units.change(values[full.name], values[smallest.name])
