"""``estimate --check``: what was predicted of a model, beside what ``bench`` had measured of it on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cost_law import Prediction
from benchmarks.foresight import BACKEND, Check, foresight, profile_of, rehearsed_rows
from benchmarks.schema import Phase, RehearsedLayer, Results, SentBytes, Subject
from benchmarks.summary import phase_cost
from benchmarks.tally import GOAL, BackendTally, Tally
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.preset import rehearse as timed

if TYPE_CHECKING:
    from rich.table import Table


def check_model(graph: Graph, results: Results, *, origin: Path) -> tuple[Check, ...]:
    """Rehearses ``graph`` and predicts each row that ``results`` has of it; nothing of the rows goes into that.

    The rows are those of the networks that keep as many ReLUs of as many, and as many in each layer.

    Raises:
        ConfigError: the results have no such row.
    """
    subjects = [subject for subject in results.subjects if _is_of(results, subject, graph)]
    rehearsable = any(
        phase_cost(results, BACKEND, subject.name, "online", network=network)
        for subject in subjects
        for network in results.networks
        if profile_of(network)
    )
    if not rehearsable:
        counts = ", ".join(f"{subject.relu_count:,} of {subject.relu_total:,}" for subject in results.subjects)
        raise ConfigError(
            f"--check needs rows of {BACKEND} for {origin}, which keeps {graph.relu_count:,} ReLUs; the results have"
            f" {counts}"
        )
    rehearsed = timed.rehearse(graph, 1, threads=results.environment.threads)
    seconds: dict[Phase, list[float]] = {"offline": [rehearsed.offline_s], "online": [rehearsed.online_s]}
    dealt = [
        RehearsedLayer(layer=layer.name, seconds=(layer.seconds,), sent_bytes=SentBytes(**layer.sent_bytes))
        for layer in rehearsed.dealt
    ]
    rows = tuple(
        row for subject in subjects for row in rehearsed_rows(seconds, dealt, graph=graph, subject=subject.name)
    )
    return foresight(results.model_copy(update={"rehearsed": rows}))


def print_checks(checks: Sequence[Check], *, when: str) -> None:
    """What rehearsals predicted, on stderr; nothing where there are none. when: they were made, for the caption."""
    from pi_runtime.cli.estimate_tables import table

    shown = table(
        "predicted against measured",
        f"predicted: a rehearsal {when}, and the link's numbers; measured: medians of the results",
        ("network", "link", "phase"),
        ("predicted s", "measured s", "error", "bytes", "of them\nunforeseen"),
    )
    for check in checks:
        shown.add_row(
            check.subject,
            check.network,
            check.phase,
            *_seconds(check),
            f"{check.measured_bytes:,}",
            f"{check.measured_bytes - check.predicted_bytes:,}",
        )
    _print(shown)


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """What the cost law predicted, on stderr; nothing where too few ReLU counts were measured for one."""
    from pi_runtime.cli.estimate_tables import table

    shown = table(
        "cost law: held-back ReLU counts predicted from the others",
        "a + b ReLUs + rounds RTT + bytes / bandwidth; *: beyond the counts that it was fitted on",
        ("backend", "link", "phase"),
        ("ReLUs", "predicted s", "measured s", "error"),
    )
    for entry in predictions:
        count = f"{entry.relu_count:,}{'*' if entry.outside else ''}"
        shown.add_row(entry.backend, entry.network, entry.phase, count, *_seconds(entry))
    _print(shown)


def print_tallies(tallies: Sequence[BackendTally]) -> None:
    """How good the cost law's predictions are, on stderr; nothing where there are none."""
    from pi_runtime.cli.estimate_tables import table

    shown = table(
        f"cost law: held-back latencies within {GOAL:.0%}, and the worst error",
        "of all links and phases; beyond: ReLU counts below or above all that the law was fitted on",
        ("backend",),
        ("between", "worst", "beyond", "worst"),
    )
    for entry in tallies:
        shown.add_row(entry.backend, *_tally(entry.between), *_tally(entry.beyond))
    _print(shown)


def _tally(entry: Tally) -> tuple[str, str]:
    return f"{entry.within} of {entry.total}", "" if entry.worst is None else f"{100 * entry.worst:.1f} %"


def _seconds(entry: Check | Prediction) -> tuple[str, str, str]:
    return f"{entry.predicted_s:.4f}", f"{entry.measured_s:.4f}", f"{100 * entry.error:+.1f} %"


def _print(shown: Table) -> None:
    from rich.console import Console

    if shown.row_count:
        Console(stderr=True, highlight=False).print(shown)


def _is_of(results: Results, subject: Subject, graph: Graph) -> bool:
    """Whether the subject may be ``graph``; where the results do not tell its layers, by the counts alone."""
    total = graph.metadata.get("relu_total", subject.relu_total)
    if (subject.relu_count, subject.relu_total) != (graph.relu_count, total):
        return False
    told = [layer.relu_count for layer in results.relu_layers if layer.subject == subject.name]
    return not told or [count for count in told if count] == [node.relu_count for node in graph.relu_layers]
