"""The results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import units
from benchmarks.bars import LATENCY, TRAFFIC
from benchmarks.cost_law import predictions
from benchmarks.fit import cost_lines
from benchmarks.headline import problems
from benchmarks.labels import IMAGES, MASKS, WEIGHTS, subject_label
from benchmarks.ratios import ratios
from benchmarks.schema import LOOPBACK, Phase, Results
from benchmarks.summary import PhaseCost, known_cost, known_subjects
from benchmarks.ten_times import ten_times


def print_tables(results: Results, console: Console | None = None) -> None:
    """Prints what was measured on ``console`` (stderr where there is none), and problems last."""
    console = console or Console(stderr=True, highlight=False)
    for make in (_subjects, _latency, _traffic, _fewer, _ratios, _lines, _predictions):
        table = make(results)
        if table.row_count:
            console.print(table)
    for problem in problems(results):
        console.print(Text(f"WARNING: {problem}", style="bold red"), soft_wrap=True)


def _subjects(results: Results) -> Table:
    table = _table("Networks", ("network", "mask", "weights", "measured on"), ("ReLUs", "of", "test accuracy"))
    for subject in results.subjects:
        right = subject.test_accuracy
        table.add_row(
            Text(subject_label(subject)),
            MASKS[subject.mask].removesuffix(" mask"),
            WEIGHTS[subject.weights].removesuffix(" weights"),
            IMAGES[subject.images],
            units.count(subject.relu_count),
            units.count(subject.relu_total),
            "" if right is None else units.percent(right),
        )
    return table


def _latency(results: Results) -> Table:
    table = _table(
        "One inference",
        ("backend", "network", *_link_name(results)),
        ("online", "offline", "same"),
        caption="seconds: median (least-most); same: predictions as in plaintext; ~: modelled, not measured",
    )
    for backend in results.backends:
        for network in results.networks:
            for subject in known_subjects(results, backend, network=network):
                online = known_cost(results, backend, subject.name, "online", network=network)
                offline = known_cost(results, backend, subject.name, "offline", network=network)
                entry = results.accuracy_of(backend, subject.name)
                table.add_row(
                    Text(backend),
                    Text(subject_label(subject)),
                    *_link(results, network),
                    _seconds(online),
                    _seconds(offline),
                    units.percent(entry.agreement_with_plaintext) if entry else "",
                )
        table.add_section()
    return table


def _traffic(results: Results) -> Table:
    names = ("online client", "online server", "online rounds", "offline client", "offline server", "offline dealer")
    numbers = tuple(name.replace(" ", "\n") for name in names)
    table = _table("What each sends", ("backend", "network", *_link_name(results)), numbers)
    for backend in results.backends:
        for network in results.networks:
            for subject in known_subjects(results, backend, network=network):
                online = known_cost(results, backend, subject.name, "online", network=network)
                offline = known_cost(results, backend, subject.name, "offline", network=network)
                if online is None or offline is None or online.sent_bytes.total + offline.sent_bytes.total == 0:
                    continue
                table.add_row(
                    Text(backend),
                    Text(subject_label(subject)),
                    *_link(results, network),
                    units.bytes_(online.sent_bytes.client),
                    units.bytes_(online.sent_bytes.server),
                    units.count(online.rounds),
                    units.bytes_(offline.sent_bytes.client),
                    units.bytes_(offline.sent_bytes.server),
                    units.bytes_(offline.sent_bytes.dealer),
                )
        table.add_section()
    return table


def _ratios(results: Results) -> Table:
    texts = ("backend", "network", *_link_name(results), "of")
    table = _table("Latency as a multiple", texts, ("online", "offline + online"))
    for ratio in ratios(results):
        table.add_row(
            Text(ratio.backend),
            Text(subject_label(results.subject(ratio.subject))),
            *_link(results, ratio.network),
            Text(ratio.reference),
            units.significant(ratio.online),
            units.significant(ratio.total),
        )
    return table


def _fewer(results: Results) -> Table:
    """By what factor the costs fell with the ReLUs."""
    table = _table(
        "Fewer ReLUs: times less",
        ("backend", "ReLUs", *_link_name(results)),
        ("ReLUs\nthemselves", "online\nbytes", "online\nlatency", "offline\nbytes", "offline\nlatency"),
    )
    phases: tuple[Phase, ...] = ("online", "offline")
    for entry in ten_times(results):
        falls = (entry.fall(phase, measure) for phase in phases for measure in (TRAFFIC, LATENCY))
        table.add_row(
            Text(entry.backend + (" ~" if entry.modelled else "")),
            f"{units.count(entry.many.relu_count)} → {units.count(entry.few.relu_count)}",
            *_link(results, entry.network),
            units.significant(entry.relus),
            *(units.significant(fall.factor) if fall is not None and fall.factor else "" for fall in falls),
        )
    return table


def _lines(results: Results) -> Table:
    several = len({subject.model for subject in results.subjects}) > 1
    table = _table(
        "Cost against the ReLU count",
        ("backend", *(("network",) if several else ()), *_link_name(results), "phase"),
        ("at none", "1,000 more", "R²"),
        caption="least squares over the medians",
    )
    for entry in cost_lines(results):
        line = entry.line
        table.add_row(
            Text(entry.backend),
            *((Text(entry.model),) if several else ()),
            *_link(results, entry.network),
            entry.phase,
            units.amount(line.intercept, entry.unit),
            units.amount(1000 * line.slope, entry.unit),
            f"{line.r_squared:.4f}",
        )
    return table


def _predictions(results: Results) -> Table:
    table = _table(
        "Held back: each ReLU count predicted from the others",
        ("backend", "phase", *_link_name(results)),
        ("ReLUs", "predicted", "measured", "error"),
        caption="a + b ReLUs + rounds RTT + bytes / bandwidth",
    )
    for entry in predictions(results):
        table.add_row(
            Text(entry.backend),
            entry.phase,
            *_link(results, entry.network),
            units.count(entry.relu_count),
            units.amount(entry.predicted_s, "s"),
            units.seconds(entry.measured_s),
            f"{100 * entry.error:+.1f} %",
        )
    return table


def _seconds(cost: PhaseCost | None) -> str:
    if cost is None or cost.latency_s.max == 0:
        return ""
    latency = cost.latency_s
    mark = "~" if cost.kind == "modelled" else ""
    if latency.runs == 1:
        return mark + units.seconds(latency.median)
    return mark + units.seconds_range(latency.median, latency.min, latency.max)


def _link_name(results: Results) -> tuple[str, ...]:
    """The column of the link, where the results have several to tell apart or another than loopback."""
    return () if results.networks == (LOOPBACK,) else ("link",)


def _link(results: Results, network: str) -> tuple[Text, ...]:
    """A cell of that column, if there is one."""
    return tuple(Text(network) for _ in _link_name(results))


def _table(title: str, texts: Sequence[str], numbers: Sequence[str], caption: str | None = None) -> Table:
    # Narrow enough for the 80 columns of a terminal that does not tell its width.
    table = Table(title=title, caption=caption, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
