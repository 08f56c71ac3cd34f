"""What the ReLUs of a network count for in the work of a phase, in ReLUs: the cost law's b is a factor of it.

Each counts as one, but online under two kinds of backend. What it counts for follows from the public graph, masks and
rings, which are known of a network that was not measured as well.

- `preset`: by the bytes of its material against the mean, as that is what a gate reads. A layer's ring is no larger
  than its values want, which differ between layers and from one mask to another, and with the rings go the tables.
- SPU: a layer that keeps some of its ReLUs has these taken out and all its elements put together again
  (:mod:`pi_runtime.spu.jax_graph`), which SPU does an element at a time. A layer that keeps all is spared it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from benchmarks.schema import Phase, Results, Subject
from benchmarks.summary import layer_costs

_BY_MATERIAL = "preset"

_MOVED = {"spu-semi2k": 1.3, "spu-cheetah": 0.03}
"""What an element that is taken out or put back counts for, in ReLUs: of a layer of 65,536 alone, both parties in one
process, 3.1 to 3.7 us an element where a comparison took 2.6 us (semi2k), and 4.1 us where it took 127 us (Cheetah)."""


def relu_work(results: Results, backend: str, phase: Phase, subjects: Sequence[Subject]) -> Mapping[str, float]:
    """The work of each subject's ReLUs, by name.

    `preset` has the plain counts where its offline bytes are not told by layer for every subject, and SPU where the
    results do not tell the elements of the layers.
    """
    counts = {subject.name: float(subject.relu_count) for subject in subjects}
    if phase == "offline":
        return counts
    if backend == _BY_MATERIAL:
        return _by_material(counts, {name: _material_bytes(results, backend, name) for name in counts})
    moved = _MOVED.get(backend, 0.0)
    return {name: count + moved * _moved_elements(results, name) for name, count in counts.items()}


def _by_material(counts: Mapping[str, float], material: Mapping[str, int]) -> Mapping[str, float]:
    if not any(counts.values()) or any(counts[name] and not material[name] for name in counts):
        return counts
    mean = fsum(material.values()) / fsum(counts.values())
    return {name: size / mean for name, size in material.items()}


def _material_bytes(results: Results, backend: str, subject: str) -> int:
    """Offline bytes of the layers that keep ReLUs, of all roles, for one image; they are the same on each link."""
    told = (layer_costs(results, backend, subject, "offline", network=network) for network in results.networks)
    return next((sum(layer.sent_bytes.total for layer in layers if layer.relu_count) for layers in told if layers), 0)


def _moved_elements(results: Results, subject: str) -> int:
    """Elements taken out of, and put back into, the layers that keep some of their ReLUs and not all."""
    return sum(
        layer.relu_count + layer.elements
        for layer in results.relu_layers
        if layer.subject == subject and 0 < layer.relu_count < layer.elements
    )
