"""What the report says of each backend, made ready: bars, table cells, and the layers.

Nothing is measured or rounded elsewhere: a view takes figures from :class:`benchmarks.schema.Results` and gives text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import MEASURES, Bar, Chart, Measure, Segment, segments
from benchmarks.labels import extremes, place, subject_label
from benchmarks.layer_figures import LayerFigure, layer_figures
from benchmarks.layer_views import KIND_NAMES, RELU, sums_by_kind
from benchmarks.plots import key_of
from benchmarks.schema import PHASES, Phase, Results, Subject
from benchmarks.summary import PhaseCost, known_cost, known_subjects, main_network
from benchmarks.tiles import PLAINTEXT, secure_backends

RUNNING: tuple[Phase, ...] = ("online", "offline")
"""The phases that each inference pays for, and the colours of their bars."""
COLOURS = {"online": "accent", "offline": "full"}

BYTE_SOURCES = {
    "tcp_info": "bytes counted by the operating system at each socket",
    "communicator": "bytes as the framework's own communicator estimates them",
    "channel": "bytes as handed to the sockets, framing included",
}


@dataclass(frozen=True, kw_only=True)
class BackendView:
    """Everything the report says of one backend. ``sends``: whether it has any traffic.

    phases: offline against online, on each link. kinds: online cost by kind of layer.
    """

    name: str
    note: str
    sends: bool
    phases: tuple[Chart, ...]
    costs: tuple[PhaseCost, ...]
    kinds: tuple[Chart, ...]
    layers: tuple[LayerFigure, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All bar charts."""
        return self.phases + self.kinds


def backend_views(results: Results) -> tuple[BackendView, ...]:
    """One view a backend, the secure ones first."""
    secure = secure_backends(results)
    names = (*secure, *(name for name in results.backends if name not in secure))
    return tuple(_backend_view(results, name) for name in names)


def _backend_view(results: Results, name: str) -> BackendView:
    found = (
        known_cost(results, name, subject.name, phase, network=network)
        for network in results.networks
        for phase in PHASES
        for subject in known_subjects(results, name, network=network)
    )
    costs = tuple(cost for cost in found if cost is not None and (cost.latency_s.max or cost.sent_bytes.total))
    sources = {BYTE_SOURCES.get(cost.byte_source, cost.byte_source) for cost in costs if cost.byte_source}
    phases = (
        _phase_chart(results, name, costs, network, measure) for network in results.networks for measure in MEASURES
    )
    kinds = (_kind_chart(results, name, measure) for measure in MEASURES)
    return BackendView(
        name=name,
        note="; ".join(sorted(sources)),
        sends=any(cost.sent_bytes.total for cost in costs),
        phases=tuple(chart for chart in phases if chart is not None),
        costs=costs,
        kinds=tuple(chart for chart in kinds if chart is not None),
        layers=layer_figures(results, name),
    )


def _phase_chart(
    results: Results, name: str, costs: Sequence[PhaseCost], network: str, measure: Measure
) -> Chart | None:
    """A bar a subject, whose parts are the phases; None where nothing was spent."""
    chosen = [cost for cost in costs if cost.network == network and cost.phase in RUNNING]
    bars = []
    for subject in dict.fromkeys(cost.subject for cost in chosen):
        own = {cost.phase: cost for cost in chosen if cost.subject == subject}
        parts = [(phase, measure.of_phase(own[phase])) for phase in RUNNING if phase in own]
        if not any(value for _, value in parts):
            continue
        modelled = any(cost.kind == "modelled" for cost in own.values())
        bars.append(
            Bar(
                label=subject_label(subject),
                segments=segments((COLOURS[phase], phase, value) for phase, value in parts),
                value=measure.text(sum(value for _, value in parts)),
                note=", ".join(f"{phase} {measure.text(value)}" for phase, value in parts if value)
                + (" (modelled)" if modelled else ""),
                modelled=modelled,
            )
        )
    if not bars:
        return None
    online = {cost.subject.name: measure.of_phase(cost) for cost in chosen if cost.phase == "online"}
    change = _change(results, online)
    seen = {part.label for bar in bars for part in bar.segments}
    return Chart(
        key=key_of("phases", name, network, measure.name),
        title=f"{name}: {measure.name}, offline and online{place(results, network)}",
        unit=measure.unit,
        bars=tuple(bars),
        legend=tuple((COLOURS[phase], phase) for phase in RUNNING if phase in seen),
        change=change and f"online {change}",
    )


def _kind_chart(results: Results, name: str, measure: Measure) -> Chart | None:
    if name == PLAINTEXT:
        return None  # onnxruntime computes a ReLU inside a convolution: its layers are no parts by kind
    network = main_network(results)
    sums = sums_by_kind(results, name, measure.of_layer, network=network)
    totals = {subject: sum(kinds.values()) for subject, kinds in sums.items()}
    if not any(totals.values()):
        return None
    change = _change(results, {subject: kinds[RELU] for subject, kinds in sums.items()})
    return Chart(
        key=key_of("kinds", name, measure.name),
        title=f"{name}: online {measure.name} by kind of layer{place(results, network)}",
        unit=measure.unit,
        bars=tuple(
            kind_bar(results.subject(subject), kinds, measure) for subject, kinds in sums.items() if totals[subject]
        ),
        legend=kind_legend(sums.values()),
        change=change and f"{RELU} {change}",
    )


def kind_bar(subject: Subject, kinds: dict[str, float], measure: Measure) -> Bar:
    """One network's cost as parts by kind of layer, the ReLUs' share noted."""
    total = sum(kinds.values())
    return Bar(
        label=subject_label(subject),
        segments=tuple(
            Segment(kind=f"kind{i}", label=kind, value=kinds[kind]) for i, kind in enumerate(KIND_NAMES) if kinds[kind]
        ),
        value=measure.text(total),
        note=f"{RELU} {measure.text(kinds[RELU])}, {units.percent(kinds[RELU] / (total or 1), 0)}",
    )


def kind_legend(sums: Iterable[dict[str, float]]) -> tuple[tuple[str, str], ...]:
    """(Colour, text) of the kinds of layer that cost anything."""
    seen = {kind for kinds in sums for kind, value in kinds.items() if value}
    return tuple((f"kind{i}", kind) for i, kind in enumerate(KIND_NAMES) if kind in seen)


def _change(results: Results, values: dict[str, float]) -> str | None:
    full, smallest = extremes(results)
    if full is None or full.name not in values or smallest.name not in values:
        return None
    return units.change(values[full.name], values[smallest.name])
