"""The networks under measurement: their files, their graphs, and what identifies a measurement of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.errors import MeasureError
from benchmarks.reference import Images, Labels, accuracy, reference_logits
from benchmarks.schema import Environment, ImagesKind, Mask, ReluLayer, Schedule, Subject, Weights
from pi_runtime.graph import Graph, Node, Shape
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.source_digest import source_digest

MEASURED_PACKAGES = ("pi_runtime", "benchmarks")


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectFile:
    """A network at one budget, to be measured.

    name: unique among the subjects. path: ONNX file. images: float32 [N, C, H, W], normalised; labels: int64 [N], for
    the accuracies, None where there are none. model: the network's name, the same at each budget; from the metadata of
    the file where it is None. mask, weights, images_kind: as :class:`benchmarks.schema.Subject` has them.
    accuracy_images: how many of the images a backend's logits are compared on, spread evenly. simulated_images: how
    many go through the simulator of `preset` where that is among the backends. left_out: backends that are not measured
    on it.
    """

    name: str
    path: Path
    images: Images
    labels: Labels | None = None
    model: str | None = None
    mask: Mask = "given"
    weights: Weights = "given"
    images_kind: ImagesKind = "test"
    accuracy_images: int = 100
    simulated_images: int = 0
    left_out: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.accuracy_images < 1:
            raise MeasureError(f"accuracy_images must be >= 1, got {self.accuracy_images}")

    @property
    def chosen(self) -> list[int]:
        """Indices of the images of the comparison: a set sorted by class gives every class."""
        return spread(len(self.images), self.accuracy_images)


def spread(images: int, count: int) -> list[int]:
    """Indices of at most ``count`` of so many images, at even distances."""
    count = min(images, count)
    return [index * images // count for index in range(count)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subjects:
    """What is measured, and the graph of each by name."""

    files: tuple[SubjectFile, ...]
    graphs: Mapping[str, Graph]

    def model(self, file: SubjectFile) -> str:
        """The name of a subject's network."""
        return file.model or str(self.graphs[file.name].metadata.get("name") or file.path.stem)

    def describe(self, threads: int) -> tuple[Subject, ...]:
        """The entries of the results; runs onnxruntime over all labelled images, on ``threads`` threads."""
        return tuple(self._describe(file, threads) for file in self.files)

    def relu_layers(self) -> tuple[ReluLayer, ...]:
        """Kept ReLUs an activation; a layer that kept nothing has no node and takes its place from another budget."""
        found = []
        for file in self.files:
            own = self.graphs[file.name].relu_layers
            alike = [self.graphs[other.name] for other in self.files if self.model(other) == self.model(file)]
            fullest = max(alike, key=lambda graph: len(graph.relu_layers))
            found += [
                _relu_layer(file.name, node, _activation_shape(fullest, node), _same_layer(own, node))
                for node in fullest.relu_layers
            ]
        return tuple(found)

    def fingerprint(self, schedule: Schedule, environment: Environment) -> str:
        """SHA-256, hexadecimal, of all that a figure depends on: files, images, schedule, code and environment."""
        document = {
            "subjects": [
                {
                    "name": file.name,
                    "kinds": [self.model(file), file.mask, file.weights, file.images_kind, file.accuracy_images],
                    "file": hashlib.sha256(file.path.read_bytes()).hexdigest(),
                    "images": [file.images.shape, hashlib.sha256(file.images.tobytes()).hexdigest()],
                    "labels": None if file.labels is None else hashlib.sha256(file.labels.tobytes()).hexdigest(),
                }
                for file in self.files
            ],
            "schedule": schedule.model_dump(mode="json"),
            "environment": environment.model_dump(mode="json", exclude={"commit"}),
            "code": source_digest(*MEASURED_PACKAGES),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def _describe(self, file: SubjectFile, threads: int) -> Subject:
        graph = self.graphs[file.name]
        alike = (self.graphs[other.name] for other in self.files if self.model(other) == self.model(file))
        right = None
        if file.labels is not None:
            right = accuracy(reference_logits(file.path, file.images, threads), file.labels)
        return Subject(
            name=file.name,
            model=self.model(file),
            dataset=str(graph.metadata.get("dataset") or "unknown"),
            relu_total=max(max(_whole(g.metadata.get("relu_total"), 0), g.relu_count) for g in alike),
            relu_budget=_whole(graph.metadata.get("relu_budget"), graph.relu_count)
            if file.mask != "all"
            else graph.relu_count,
            relu_count=graph.relu_count,
            mask=file.mask,
            weights=file.weights,
            images=file.images_kind,
            test_accuracy=right,
            test_images=0 if right is None else len(file.images),
        )


def load_subjects(files: Sequence[SubjectFile]) -> Subjects:
    """Reads the graphs and checks that images, labels and networks fit one another.

    Raises:
        GraphError: a file is damaged or outside the operator set.
        MeasureError: there is no subject, a name stands twice, images or labels do not fit, or subjects of one model
            do not take the same images or give the same classes.
    """
    if not files:
        raise MeasureError("subjects must hold at least one network")
    twice = [name for name, times in Counter(file.name for file in files).items() if times > 1]
    if twice:
        raise MeasureError(f"subjects must have names of their own, got {twice[0]!r} twice")
    subjects = Subjects(files=tuple(files), graphs={file.name: load_onnx(file.path) for file in files})
    ends: dict[str, tuple[SubjectFile, object]] = {}
    for file in files:
        graph = subjects.graphs[file.name]
        _check_images(file, graph)
        end = (graph.input_shape, graph.output_shape)
        first, expected = ends.setdefault(subjects.model(file), (file, end))
        if end != expected:
            raise MeasureError(
                f"{first.path} and {file.path} must be of one network, got (input, output) shapes {expected} and {end};"
                " export both from one run"
            )
    return subjects


def _check_images(file: SubjectFile, graph: Graph) -> None:
    images, expected = file.images, graph.input_shape
    if images.ndim != 1 + len(expected) or images.shape[1:] != expected or not len(images):
        raise MeasureError(
            f"images of {file.name} must have shape [N, {', '.join(map(str, expected))}], got {list(images.shape)}"
        )
    if images.dtype != np.float32:
        raise MeasureError(f"images of {file.name} must be float32, got {images.dtype}; normalise them first")
    if file.labels is not None and file.labels.shape != (len(images),):
        raise MeasureError(
            f"labels of {file.name} must have shape [{len(images)}], one an image, got {list(file.labels.shape)}"
        )


def _same_layer(nodes: Sequence[Node], layer: Node) -> Node | None:
    """The node that is ``layer`` in another network; a ReLU behind an affine is named as a part of its activation.

    A node of the very name comes before one of such a part.
    """
    alike = [
        node
        for node in nodes
        if f"{node.name}.".startswith(f"{layer.name}.") or f"{layer.name}.".startswith(f"{node.name}.")
    ]
    return min(alike, key=lambda node: abs(len(node.name) - len(layer.name)), default=None)


def _relu_layer(subject: str, layer: Node, shape: Shape, own: Node | None) -> ReluLayer:
    """``layer``, ``shape``: the activation where it is fullest; ``own``: the subject's node, None where it has none."""
    elements = prod(layer.shape)
    kept_map = None
    if own is not None and own.kept is not None and own.relu_count < elements and len(shape) == 3:
        places = shape[1] * shape[2]
        kept_map = tuple(np.bincount(own.kept % places, minlength=places).tolist())
    return ReluLayer(
        subject=subject,
        layer=layer.name,
        elements=elements,
        relu_count=0 if own is None else own.relu_count,
        shape=shape,
        kept_map=kept_map,
    )


def _activation_shape(graph: Graph, node: Node) -> Shape:
    """The shape of an activation that a pruned graph may have flattened just before its ReLU; row by row, as ever."""
    maker = next((other for other in graph.nodes if other.output == node.inputs[0]), None)
    if len(node.shape) == 1 and maker is not None and maker.op == "reshape":
        return graph.shapes[maker.inputs[0]]
    return node.shape


def _whole(value: object, default: int) -> int:
    return value if type(value) is int and value >= 0 else default
