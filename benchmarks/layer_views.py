"""The report's layers: their kinds, sums by kind, and how many ReLUs each kept."""

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
class MaskTable:
    """Kept ReLUs a layer of one network, and the elements of the largest layer."""

    title: str
    rows: tuple[ReluLayer, ...]
    largest: int


def kind_of(op: str) -> int:
    """Index into ``KIND_NAMES`` of a layer with that operator."""
    return KIND_NAMES.index(KINDS.get(op, OTHER_KIND))


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
    results: Results,
    backend: str,
    measure: Callable[[LayerPhaseCost], float],
    *,
    network: str,
    phase: Phase = "online",
) -> dict[str, dict[str, float]]:
    """By subject and kind of layer, the sum of a figure over the layers."""
    sums: dict[str, dict[str, float]] = {}
    for subject in measured_subjects(results, backend, network=network):
        for row in layer_costs(results, backend, subject.name, phase, network=network):
            kinds = sums.setdefault(subject.name, dict.fromkeys(KIND_NAMES, 0.0))
            kinds[KIND_NAMES[kind_of(row.op)]] += measure(row)
    return sums
