"""The results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import units
from benchmarks.fit import cost_lines
from benchmarks.headline import problems
from benchmarks.labels import IMAGES, MASKS, WEIGHTS, subject_label
from benchmarks.ratios import ratios
from benchmarks.schema import Results
from benchmarks.summary import Spread, measured_subjects, phase_cost


def print_tables(results: Results, console: Console | None = None) -> None:
    """Prints what was measured on ``console`` (stderr where there is none), and problems last."""
    console = console or Console(stderr=True, highlight=False)
    for table in (_subjects(results), _latency(results), _traffic(results), _ratios(results), _lines(results)):
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
        ("backend", "network"),
        ("online", "offline", "same"),
        caption="seconds: median (least-most); same: predictions as in plaintext",
    )
    for backend in results.backends:
        for subject in measured_subjects(results, backend):
            online = phase_cost(results, backend, subject.name, "online")
            offline = phase_cost(results, backend, subject.name, "offline")
            entry = results.accuracy_of(backend, subject.name)
            table.add_row(
                Text(backend),
                Text(subject_label(subject)),
                _seconds(online.latency_s if online else None),
                _seconds(offline.latency_s if offline else None),
                units.percent(entry.agreement_with_plaintext) if entry else "",
            )
        table.add_section()
    return table


def _traffic(results: Results) -> Table:
    names = ("online client", "online server", "online rounds", "offline client", "offline server", "offline dealer")
    table = _table("What each sends", ("backend", "network"), tuple(name.replace(" ", "\n") for name in names))
    for backend in results.backends:
        for subject in measured_subjects(results, backend):
            online = phase_cost(results, backend, subject.name, "online")
            offline = phase_cost(results, backend, subject.name, "offline")
            if online is None or offline is None or online.sent_bytes.total + offline.sent_bytes.total == 0:
                continue
            table.add_row(
                Text(backend),
                Text(subject_label(subject)),
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
    table = _table("Latency as a multiple", ("backend", "network", "of"), ("online", "offline + online"))
    for ratio in ratios(results):
        table.add_row(
            Text(ratio.backend),
            Text(subject_label(results.subject(ratio.subject))),
            Text(ratio.reference),
            units.significant(ratio.online),
            units.significant(ratio.total),
        )
    return table


def _lines(results: Results) -> Table:
    several = len({subject.model for subject in results.subjects}) > 1
    table = _table(
        "Cost against the ReLU count",
        ("backend", "network", "phase") if several else ("backend", "phase"),
        ("at none", "1,000 more", "R²"),
        caption="least squares over the medians",
    )
    for entry in cost_lines(results):
        line = entry.line
        table.add_row(
            Text(entry.backend),
            *((Text(entry.model),) if several else ()),
            entry.phase,
            units.amount(line.intercept, entry.unit),
            units.amount(1000 * line.slope, entry.unit),
            f"{line.r_squared:.4f}",
        )
    return table


def _seconds(latency: Spread | None) -> str:
    if latency is None or latency.max == 0:
        return ""
    if latency.runs == 1:
        return units.seconds(latency.median)
    return units.seconds_range(latency.median, latency.min, latency.max)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str], caption: str | None = None) -> Table:
    # Narrow enough for the 80 columns of a terminal that does not tell its width.
    table = Table(title=title, caption=caption, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
