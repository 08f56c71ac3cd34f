"""What the ReLUs of a network count for in the work of a phase, in ReLUs: the cost law's b is a factor of it.

Offline each counts as one. Online each counts by the bytes of its material against the mean, as that is what a gate
reads: `preset` takes a layer's ring no larger than its values want, which differ between layers and from one mask to
another, and with the rings go the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from benchmarks.schema import Phase, Results, Subject
from benchmarks.summary import layer_costs


def relu_work(results: Results, backend: str, phase: Phase, subjects: Sequence[Subject]) -> Mapping[str, float]:
    """The work of each subject's ReLUs, by name.

    A backend that does not tell the offline bytes of every subject by layer has the plain counts.
    """
    counts = {subject.name: float(subject.relu_count) for subject in subjects}
    material = {name: _material_bytes(results, backend, name) for name in counts}
    if phase == "offline" or not any(counts.values()) or any(counts[name] and not material[name] for name in counts):
        return counts
    mean = fsum(material.values()) / fsum(counts.values())
    return {name: size / mean for name, size in material.items()}


def _material_bytes(results: Results, backend: str, subject: str) -> int:
    """Offline bytes of the layers that keep ReLUs, of all roles, for one image; they are the same on each link."""
    told = (layer_costs(results, backend, subject, "offline", network=network) for network in results.networks)
    return next((sum(layer.sent_bytes.total for layer in layers if layer.relu_count) for layers in told if layers), 0)
