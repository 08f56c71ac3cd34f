"""The networks under measurement: their files, their graphs, and what identifies a measurement of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from benchmarks.errors import MeasureError
from benchmarks.reference import Images, Labels
from benchmarks.schema import Environment, GraphName, ModelFacts, ReluLayer
from pi_runtime.graph import Graph
from pi_runtime.onnx_graph import load_onnx


@dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """ONNX files and the graphs read from them, ``full`` first; there is always a ``linearized`` one."""

    files: Mapping[GraphName, Path]
    graphs: Mapping[GraphName, Graph]

    def facts(self) -> ModelFacts:
        """Name, data set and ReLU counts, from the metadata where the exporter wrote them."""
        linearized = self.graphs["linearized"]
        known = linearized.metadata
        relu_count = linearized.relu_count
        if "full" in self.graphs:
            relu_total = self.graphs["full"].relu_count
        else:
            relu_total = max(_whole(known.get("relu_total"), relu_count), relu_count)
        return ModelFacts(
            name=str(known.get("name") or self.files["linearized"].stem),
            dataset=str(known.get("dataset") or "unknown"),
            relu_total=relu_total,
            relu_budget=_whole(known.get("relu_budget"), relu_count),
            relu_count=relu_count,
        )

    def relu_layers(self) -> tuple[ReluLayer, ...]:
        """Kept ReLUs an activation of the full graph (of the linearized one where that is all there is).

        A layer that kept nothing has no node in the linearized graph and counts 0 there.
        """
        basis = self.graphs.get("full", self.graphs["linearized"])
        kept = {node.name: node.relu_count for node in self.graphs["linearized"].relu_layers}
        return tuple(
            ReluLayer(
                layer=node.name,
                elements=prod(node.shape),
                full=node.relu_count if "full" in self.graphs else prod(node.shape),
                linearized=kept.get(node.name, 0),
            )
            for node in basis.relu_layers
        )


def load_subjects(full: Path | None, linearized: Path) -> Subjects:
    """Reads both graphs and checks that one can stand for the other.

    Raises:
        GraphError: a file is damaged or outside the operator set.
        MeasureError: the graphs do not take the same images or give the same classes.
    """
    files: dict[GraphName, Path] = {} if full is None else {"full": full}
    files["linearized"] = linearized
    graphs: dict[GraphName, Graph] = {name: load_onnx(path) for name, path in files.items()}
    ends = {name: (graph.input_shape, graph.output_shape) for name, graph in graphs.items()}
    if len(set(ends.values())) > 1:
        raise MeasureError(
            f"{full} and {linearized} must be of one network, got (input, output) shapes {ends['full']} and"
            f" {ends['linearized']}; export both from one run"
        )
    return Subjects(files=files, graphs=graphs)


def fingerprint(
    subjects: Subjects,
    images: Images,
    labels: Labels | None,
    settings: Mapping[str, int],
    environment: Environment,
) -> str:
    """SHA-256, hexadecimal, of everything that a figure depends on: files, images, labels, settings, environment."""
    document = {
        "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in subjects.files.items()},
        "images": [images.shape, hashlib.sha256(images.tobytes()).hexdigest()],
        "labels": None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest(),
        "settings": dict(settings),
        "environment": environment.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _whole(value: object, default: int) -> int:
    return value if type(value) is int and value >= 0 else default
