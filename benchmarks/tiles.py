"""The headline figures of the report, before and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import units
from benchmarks.bars import MEASURES, Measure
from benchmarks.labels import extremes, headline_subject, place
from benchmarks.layer_views import RELU, sums_by_kind
from benchmarks.schema import Results, Subject
from benchmarks.summary import main_network, phase_cost

PLAINTEXT = "plaintext"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline figure before and after."""

    title: str
    before: str | None
    after: str
    change: str | None
    note: str = ""


def tiles(results: Results) -> tuple[Tile, ...]:
    """ReLUs, accuracy, then latency and bytes of each secure backend: all ReLUs against the fewest."""
    network = main_network(results)
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
        alike = next((s for s in results.subjects if s.model == trained.model and s.mask == "all"), None)
        known = None if alike is None or alike.name == trained.name else alike.test_accuracy
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
        after = phase_cost(results, backend, smallest.name, "online", network=network)
        before = None if full is None else phase_cost(results, backend, full.name, "online", network=network)
        if after is None:
            continue
        for measure in MEASURES:
            now, then = measure.of_phase(after), None if before is None else measure.of_phase(before)
            found.append(
                Tile(
                    title=f"Online {measure.name}",
                    before=None if then is None else measure.text(then),
                    after=measure.text(now),
                    change=None if then is None else units.change(then, now),
                    note=f"{backend}, one image{place(results, network)}"
                    f"{_relu_part(results, backend, (full, smallest), measure, network)}",
                )
            )
    return tuple(found)


def secure_backends(results: Results) -> tuple[str, ...]:
    """The backends that hide something: all but plaintext."""
    return tuple(name for name in results.backends if name != PLAINTEXT)


def _relu_part(results: Results, name: str, subjects: Iterable[Subject | None], measure: Measure, network: str) -> str:
    sums = sums_by_kind(results, name, measure.of_layer, network=network)
    parts = [measure.text(sums[s.name][RELU]) for s in subjects if s is not None and s.name in sums]
    return f"; ReLUs alone {' → '.join(parts)}" if parts else ""
