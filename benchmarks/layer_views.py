"""The report's layers: a table for each network and phase, sums by kind of layer, and where the ReLUs sit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.labels import headline_subject, subject_label
from benchmarks.schema import Phase, ReluLayer, Results
from benchmarks.summary import LayerPhaseCost, layer_costs, measured_subjects

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


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """The layers of one network in one phase, in the order of execution, and the time of the slowest."""

    title: str
    rows: tuple[LayerPhaseCost, ...]
    slowest_s: float


@dataclass(frozen=True, kw_only=True)
class MaskTable:
    """Kept ReLUs a layer of one network, and the elements of the largest layer."""

    title: str
    rows: tuple[ReluLayer, ...]
    largest: int


def layer_tables(results: Results, backend: str) -> tuple[LayerTable, ...]:
    """A table a network and phase of one backend, the fewest ReLUs first."""
    phases: tuple[Phase, ...] = ("online", "offline")
    subjects = sorted(measured_subjects(results, backend), key=lambda subject: subject.relu_count)
    return tuple(
        LayerTable(title=f"{phase}, {subject_label(subject)}", rows=rows, slowest_s=max(r.seconds for r in rows))
        for subject in subjects
        for phase in phases
        if (rows := layer_costs(results, backend, subject.name, phase))
    )


def mask_tables(results: Results) -> tuple[MaskTable, ...]:
    """A table a network that lost ReLUs, the one that the page is about first; of all networks where none lost any."""
    shown = [subject for subject in results.subjects if subject.mask != "all"] or list(results.subjects)
    first = headline_subject(results)
    shown.sort(key=lambda subject: subject.name != first.name)
    found = []
    for subject in shown:
        rows = tuple(layer for layer in results.relu_layers if layer.subject == subject.name)
        if rows:
            largest = max(layer.elements for layer in rows)
            found.append(MaskTable(title=subject_label(subject), rows=rows, largest=largest))
    return tuple(found)


def sums_by_kind(
    results: Results, backend: str, measure: Callable[[LayerPhaseCost], float]
) -> dict[str, dict[str, float]]:
    """By subject and kind of layer, the sum of an online figure over the layers."""
    sums: dict[str, dict[str, float]] = {}
    for subject in measured_subjects(results, backend):
        for row in layer_costs(results, backend, subject.name, "online"):
            kinds = sums.setdefault(subject.name, dict.fromkeys(KIND_NAMES, 0.0))
            kinds[KINDS.get(row.op, OTHER_KIND)] += measure(row)
    return sums
