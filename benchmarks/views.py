"""What the report shows, made ready: bars with their widths, tiles and table cells with their text.

Nothing is measured or rounded elsewhere: a view takes figures from :class:`benchmarks.schema.Results` and gives text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks import units
from benchmarks.schema import PHASES, GraphName, LayerRow, Phase, Results, Row

PLAINTEXT = "plaintext"
GRAPH_LABELS: dict[GraphName, str] = {"full": "all ReLUs", "linearized": "linearized"}
ROLE_NAMES = ("client", "server", "dealer")
RELU = "ReLU"
KINDS: dict[str, str] = {
    "relu": RELU,
    "conv": "linear layers",
    "linear": "linear layers",
    "affine": "linear layers",
    "max_pool": "max pooling",
}
OTHER_KIND = "everything else"
KIND_NAMES = (RELU, "linear layers", "max pooling", OTHER_KIND)
BYTE_SOURCES = {
    "tcp_info": "bytes counted by the operating system at each socket",
    "communicator": "bytes as the framework's own communicator estimates them",
}


def _latency(row: Row) -> float:
    return row.latency_s.median


def _sent(row: Row | LayerRow) -> float:
    return float(row.sent_bytes.total)


def _layer_seconds(row: LayerRow) -> float:
    return row.seconds


def _byte_text(value: float) -> str:
    return units.bytes_(round(value))


Text = Callable[[float], str]
MEASURES: tuple[tuple[str, Callable[[Row], float], Callable[[LayerRow], float], Text], ...] = (
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
    rows: tuple[Row, ...]
    kinds: tuple[Chart, ...]
    bound: str
    layers: tuple[LayerTable, ...]


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The layers of one network in one phase, in the order of execution, and the time of the slowest."""

    title: str
    rows: tuple[LayerRow, ...]
    slowest_s: float


def tiles(results: Results) -> tuple[Tile, ...]:
    """ReLUs, accuracy, then latency and bytes of each secure backend."""
    model, accuracy = results.model, results.accuracy
    found = [
        Tile(
            title="ReLUs",
            before=units.count(model.relu_total),
            after=units.count(model.relu_count),
            change=f"{units.percent(1 - model.relu_count / model.relu_total)} removed" if model.relu_total else None,
        )
    ]
    if accuracy.linearized_test is not None:
        change = None
        if accuracy.baseline_test is not None:
            change = f"{100 * (accuracy.linearized_test - accuracy.baseline_test):+.2f} points".replace("-", "−")
        found.append(
            Tile(
                title="Test accuracy",
                before=None if accuracy.baseline_test is None else units.percent(accuracy.baseline_test),
                after=units.percent(accuracy.linearized_test),
                change=change,
                note=f"on {units.count(accuracy.test_images)} images",
            )
        )
    for backend in secure_backends(results):
        online: dict[GraphName, Row] = {
            graph: row for graph in results.graphs if (row := results.row(backend, graph, "online")) is not None
        }
        if "linearized" in online:
            after, before = online["linearized"], online.get("full")
            for title, measure, layer_measure, text in MEASURES:
                part = _relu_part(results, backend, layer_measure, text)
                found.append(
                    Tile(
                        title=f"Online {title}",
                        before=None if before is None else text(measure(before)),
                        after=text(measure(after)),
                        change=None if before is None else units.change(measure(before), measure(after)),
                        note=f"{backend}, one image{part}",
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


def kind_of(op: str) -> str:
    """The kind of layer that an operator belongs to; one of ``KIND_NAMES``."""
    return KINDS.get(op, OTHER_KIND)


def _backend_view(results: Results, name: str) -> BackendView:
    found = (results.row(name, graph, phase) for phase in PHASES for graph in results.graphs)
    rows = tuple(row for row in found if row is not None and (row.latency_s.max or row.sent_bytes.total))
    phases: tuple[Phase, ...] = ("online", "offline")
    charts = [chart for phase in phases if (chart := _latency_chart(rows, phase)) is not None]
    charts += [chart for phase in phases if (chart := _bytes_chart(rows, phase)) is not None]
    sources = {BYTE_SOURCES.get(row.byte_source, row.byte_source) for row in rows if row.byte_source}
    return BackendView(
        name=name,
        note="; ".join(sorted(sources)),
        sends=any(row.sent_bytes.total for row in rows),
        charts=tuple(charts),
        rows=rows,
        kinds=_kind_charts(results, name),
        bound=_bound(results, name),
        layers=tuple(
            LayerTable(title=f"{phase}, {GRAPH_LABELS[graph]}", rows=layers, slowest_s=max(r.seconds for r in layers))
            for graph in reversed(results.graphs)
            for phase in phases
            if (layers := results.layer_rows(name, graph, phase))
        ),
    )


def _latency_chart(rows: Sequence[Row], phase: Phase) -> Chart | None:
    chosen = [row for row in rows if row.phase == phase]
    longest = max((row.latency_s.median for row in chosen), default=0.0)
    if longest == 0:
        return None
    bars = tuple(
        Bar(
            label=GRAPH_LABELS[row.graph],
            segments=(Segment(kind=row.graph, width=100 * row.latency_s.median / longest, label=phase),),
            value=units.seconds(row.latency_s.median),
            note=f"{units.seconds(row.latency_s.min)} to {units.seconds(row.latency_s.max)}"
            f" in {row.latency_s.runs} runs",
        )
        for row in chosen
    )
    return Chart(title=f"{phase.capitalize()} latency", bars=bars, change=_change(chosen, _latency))


def _bytes_chart(rows: Sequence[Row], phase: Phase) -> Chart | None:
    chosen = [row for row in rows if row.phase == phase]
    most = max((row.sent_bytes.total for row in chosen), default=0)
    if most == 0:
        return None
    bars = tuple(
        Bar(
            label=GRAPH_LABELS[row.graph],
            segments=_segments(
                ((role, role, getattr(row.sent_bytes, role)) for role in ROLE_NAMES),
                most,
                _byte_text,
            ),
            value=units.bytes_(row.sent_bytes.total),
            note=f"{units.count(row.rounds)} rounds",
        )
        for row in chosen
    )
    senders = [role for role in ROLE_NAMES if any(getattr(row.sent_bytes, role) for row in chosen)]
    legend = tuple((role, f"sent by {role}") for role in senders)
    return Chart(title=f"{phase.capitalize()} traffic", bars=bars, legend=legend, change=_change(chosen, _sent))


def _kind_charts(results: Results, name: str) -> tuple[Chart, ...]:
    charts = []
    for title, _, measure, text in MEASURES:
        sums = _sums_by_kind(results, name, measure)
        totals = {graph: sum(kinds.values()) for graph, kinds in sums.items()}
        most = max(totals.values(), default=0.0)
        if most == 0:
            continue
        bars = tuple(
            Bar(
                label=GRAPH_LABELS[graph],
                segments=_segments(((f"kind{i}", kind, kinds[kind]) for i, kind in enumerate(KIND_NAMES)), most, text),
                value=text(totals[graph]),
                note=f"{RELU} {text(kinds[RELU])}, {units.percent(kinds[RELU] / (totals[graph] or 1), 0)}",
            )
            for graph, kinds in sums.items()
        )
        legend = tuple(
            (f"kind{i}", kind) for i, kind in enumerate(KIND_NAMES) if any(kinds[kind] for kinds in sums.values())
        )
        change = None
        if len(sums) == len(GRAPH_LABELS):
            change = units.change(sums["full"][RELU], sums["linearized"][RELU])
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
    shares = []
    for title, _, measure, _ in MEASURES:
        kinds = _sums_by_kind(results, name, measure).get("full", {})
        total = sum(kinds.values())
        if total:
            shares.append(f"{units.percent(kinds[RELU] / total, 0)} of its online {title}")
    if not shares:
        return ""
    return f"With all ReLUs, they are {' and '.join(shares)}; removing some can save no more than that."


def _sums_by_kind(
    results: Results, name: str, measure: Callable[[LayerRow], float]
) -> dict[GraphName, dict[str, float]]:
    sums: dict[GraphName, dict[str, float]] = {}
    for graph in results.graphs:
        for row in results.layer_rows(name, graph, "online"):
            kinds = sums.setdefault(graph, dict.fromkeys(KIND_NAMES, 0.0))
            kinds[kind_of(row.op)] += measure(row)
    return sums


def _relu_part(results: Results, name: str, measure: Callable[[LayerRow], float], text: Text) -> str:
    parts = [text(kinds[RELU]) for kinds in _sums_by_kind(results, name, measure).values()]
    return f"; ReLUs alone {' → '.join(parts)}" if parts else ""


def _segments(parts: Iterable[tuple[str, str, float]], most: float, text: Text) -> tuple[Segment, ...]:
    return tuple(
        Segment(kind=css, width=100 * value / most, label=f"{label}: {text(value)}")
        for css, label, value in parts
        if value
    )


def _change(rows: Sequence[Row], measure: Callable[[Row], float]) -> str | None:
    values = {row.graph: measure(row) for row in rows}
    if set(values) != {"full", "linearized"}:
        return None
    return units.change(values["full"], values["linearized"])
