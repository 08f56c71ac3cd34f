"""Gives a network with all its ReLUs a random mask of an exact count.

What private inference costs depends on how many elements keep their ReLU, hardly on which. A random mask therefore
stands in for a trained one where only the cost is of interest; its accuracy says nothing.
"""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from pi_runtime.errors import ExportError
from pi_runtime.export import add_metadata
from pi_runtime.graph import Node
from pi_runtime.onnx_graph import read_onnx
from pi_runtime.preset.plan import KEY
from pi_runtime.relu_pattern import kept_relu

Indices = npt.NDArray[np.int64]


def with_random_mask(proto: onnx.ModelProto, budget: int, *, seed: int, origin: str = "the network") -> onnx.ModelProto:
    """A copy of ``proto`` in which exactly ``budget`` elements, chosen uniformly over all ReLU layers, keep their ReLU.

    Layers keep their names and take the form of :func:`pi_runtime.relu_pattern.kept_relu`; one that kept nothing has
    no node. Masks of one seed are nested: what a smaller budget keeps, a larger one keeps as well. Fixed-point numbers
    in the metadata are dropped, as they were chosen for other activations; ``relu_mask`` is ``random``.

    Args:
        proto: every ReLU layer a plain ``Relu``, as :func:`pi_runtime.export.build_onnx` writes it without masks.
        budget: from 0 to the count of all elements.
        seed: of the choice; >= 0.
        origin: names ``proto`` in errors.

    Raises:
        ExportError: ``proto`` has lost ReLUs already, or ``budget`` is out of range.
        GraphError: ``proto`` is damaged or outside the operator set.
    """
    graph = read_onnx(proto, origin=origin)
    layers = graph.relu_layers
    total = _all_elements(layers, graph.metadata.get("relu_total"), origin)
    if not 0 <= budget <= total:
        raise ExportError(f"a ReLU budget must be from 0 to {total:,}, all ReLUs of {origin}, got {budget:,}")
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:budget])
    masked = onnx.ModelProto()
    masked.CopyFrom(proto)
    del masked.graph.node[:], masked.graph.value_info[:]
    replaced = _replaced(layers, chosen)
    renamed: dict[str, str] = {}
    outputs = {info.name for info in proto.graph.output}
    for node in proto.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [renamed.get(wire, wire) for wire in node.input]
        found = replaced.get(node.output[0])
        if found is None:
            masked.graph.node.append(copied)
        elif len(found[1]):
            layer, kept = found
            nodes, constants = kept_relu(layer.name, copied.input[0], node.output[0], layer.shape, kept)
            masked.graph.node.extend(nodes)
            masked.graph.initializer.extend(constants)
        elif node.output[0] in outputs:
            masked.graph.node.append(
                helper.make_node("Identity", [copied.input[0]], [node.output[0]], name=found[0].name)
            )
        else:
            renamed[node.output[0]] = copied.input[0]
    facts = {"relu_total": total, "relu_budget": budget, "relu_count": budget, "relu_mask": "random", KEY: None}
    add_metadata(masked, facts | {"relu_mask_seed": seed})
    onnx.checker.check_model(masked, full_check=True)
    return masked


def _all_elements(layers: tuple[Node, ...], declared: object, origin: str) -> int:
    """How many elements the layers have; raises where one has lost some of its ReLUs, or a layer is gone."""
    total = sum(prod(layer.shape) for layer in layers)
    kept = sum(layer.relu_count for layer in layers)
    expected = declared if isinstance(declared, int) else total
    if not kept == total == expected:
        raise ExportError(
            f"a random mask needs a network with all its ReLUs, {origin} keeps {kept:,} of {max(total, expected):,};"
            " give the file of its baseline"
        )
    return total


def _replaced(layers: tuple[Node, ...], chosen: Indices) -> dict[str, tuple[Node, Indices]]:
    """By output wire: each layer, and the flat indices within it of the elements ``chosen`` over all layers."""
    found = {}
    start = 0
    for layer in layers:
        end = start + prod(layer.shape)
        low, high = np.searchsorted(chosen, (start, end))
        found[layer.output] = (layer, chosen[low:high] - start)
        start = end
    return found
