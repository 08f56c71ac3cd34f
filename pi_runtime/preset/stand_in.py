"""The graph that a server serves: a model's own, or one whose weights are drawn, which only a clock has a use for."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi_runtime.graph import Graph, load_public
from pi_runtime.onnx_graph import load_onnx


def load_served(path: Path, *, random_weights: bool = False) -> Graph:
    """The graph of an ONNX file; with ``random_weights`` of a public graph (``.json``), or of an ONNX file, as well.

    Raises:
        GraphError: it is damaged, or outside the operator set.
    """
    if not random_weights:
        return load_onnx(path)
    return with_random_weights(load_public(path) if path.suffix == ".json" else load_onnx(path).public())


def with_random_weights(graph: Graph) -> Graph:
    """``graph`` with weights as of a fresh network, so that they have the digits of a trained one's; biases of zero."""
    rng = np.random.default_rng(0)
    nodes = []
    for node in graph.nodes:
        params: dict[str, npt.NDArray[np.float32]] = {}
        for name, shape in node.param_shapes.items():
            scale = (2 / max(prod(shape[1:]), 1)) ** 0.5 if name == "weight" else 0.0
            params[name] = rng.normal(0.0, scale, shape).astype(np.float32)
        nodes.append(replace(node, params=params))
    return replace(graph, nodes=tuple(nodes))
