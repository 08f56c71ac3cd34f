"""The graph that every backend runs: ONNX reduced to a small operator set, and its public half.

Shapes leave out the batch: [C, H, W] of an image, [N] of a flat wire. Operators (`Node.op`), their attributes and
parameters:

========  ====================================================  =================================
op        attributes                                            parameters
========  ====================================================  =================================
conv      strides, pads (top, left, bottom, right), dilations,  weight [O, C/groups, kh, kw],
          groups                                                bias [O]
linear                                                          weight [O, I], bias [O]
affine                                                          weight [C], bias [C]
add
relu      (``Node.kept``: which elements have a ReLU)
avg_pool  kernel, strides, pads, count_include_pad
max_pool  kernel, strides, pads
reshape
concat    axis (of the batch-free shape)
pad       pads_before, pads_after (zeros, one a dimension)
slice     starts, stops, steps (one a dimension)
========  ====================================================  =================================

``affine`` is a BatchNormalization that no convolution could take in. Public is everything but the parameters.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import GraphError
from pi_runtime.files import write_text

METADATA_KEY = "pi_pipeline"
"""Where an ONNX file keeps a graph's metadata."""

PUBLIC_FORMAT = "pi-pipeline public graph"
PUBLIC_SCHEMA = 1
OPERATORS = frozenset(
    ("conv", "linear", "affine", "add", "relu", "avg_pool", "max_pool", "reshape", "concat", "pad", "slice")
)

Shape = tuple[int, ...]
Attribute = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation.

    inputs: names of the wires read; output: name of the wire written; shape: of the output, without the batch.
    param_shapes: shapes of the secret parameters; params: the parameters themselves, float32, empty in a public graph.
    kept: for ``relu``, the sorted flat indices (int64) of the elements that go through a ReLU; the others pass as they
        are.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    shape: Shape
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    param_shapes: Mapping[str, Shape] = field(default_factory=dict)
    params: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)
    kept: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def relu_count(self) -> int:
        """How many elements go through a ReLU here."""
        return 0 if self.kept is None else len(self.kept)

    def ints(self, name: str) -> tuple[int, ...]:
        """The attribute ``name``, one of several integers."""
        value = self.attrs[name]
        assert isinstance(value, tuple), f"{self.op} has one integer in {name}"
        return value

    def int(self, name: str) -> int:
        """The attribute ``name``, a single integer."""
        value = self.attrs[name]
        assert not isinstance(value, tuple), f"{self.op} has several integers in {name}"
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Nodes in topological order from one input wire to one output wire.

    metadata: what the exporter wrote about the model (name, dataset, class_names, mean, std, relu_total, relu_budget,
        ...); public.
    """

    input: str
    input_shape: Shape
    output: str
    nodes: tuple[Node, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of each wire, without the batch."""
        return {self.input: self.input_shape} | {node.output: node.shape for node in self.nodes}

    @property
    def output_shape(self) -> Shape:
        return self.shapes[self.output]

    @property
    def relu_count(self) -> int:
        """Kept ReLUs of the whole graph."""
        return sum(node.relu_count for node in self.nodes)

    @property
    def relu_layers(self) -> tuple[Node, ...]:
        """The nodes that keep at least one ReLU."""
        return tuple(node for node in self.nodes if node.relu_count)

    @property
    def is_public(self) -> bool:
        """Whether the parameters are absent."""
        return all(not node.params for node in self.nodes)

    def public(self) -> Graph:
        """The same graph without parameters: what the client and the dealer may know."""
        nodes = tuple(
            Node(
                name=node.name,
                op=node.op,
                inputs=node.inputs,
                output=node.output,
                shape=node.shape,
                attrs=node.attrs,
                param_shapes=node.param_shapes,
                kept=node.kept,
            )
            for node in self.nodes
        )
        return Graph(
            input=self.input, input_shape=self.input_shape, output=self.output, nodes=nodes, metadata=self.metadata
        )

    def public_json(self) -> str:
        """The public half as canonical JSON (sorted keys), so that equal graphs give equal text."""
        document = {
            "format": PUBLIC_FORMAT,
            "schema": PUBLIC_SCHEMA,
            "input": {"name": self.input, "shape": self.input_shape},
            "output": self.output,
            "metadata": dict(self.metadata),
            "nodes": [_node_to_json(node) for node in self.nodes],
        }
        return json.dumps(document, sort_keys=True, indent=1) + "\n"

    @cached_property
    def public_hash(self) -> str:
        """SHA-256 of :meth:`public_json`, hexadecimal: names the graph in a session."""
        return hashlib.sha256(self.public_json().encode()).hexdigest()

    def save_public(self, path: Path) -> None:
        """Writes ``model.public.json``."""
        write_text(path, self.public_json())


def load_public(path: Path) -> Graph:
    """Reads a ``model.public.json``.

    Raises:
        GraphError: the file is missing, not JSON, of another format, or inconsistent.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GraphError(f"cannot read the public graph {path}: {error}; export the model again") from error
    return parse_public(document, origin=str(path))


def parse_public(document: object, *, origin: str) -> Graph:
    """Builds a public graph from its JSON document; ``origin`` names it in errors.

    Raises:
        GraphError: the document is of another format or inconsistent.
    """
    if not isinstance(document, dict) or document.get("format") != PUBLIC_FORMAT:
        raise GraphError(f"{origin} is not a public graph of pi-pipeline; expected a model.public.json")
    if document.get("schema") != PUBLIC_SCHEMA:
        raise GraphError(f"{origin} has schema {document.get('schema')!r}, this version reads {PUBLIC_SCHEMA}")
    try:
        graph = Graph(
            input=str(document["input"]["name"]),
            input_shape=_shape(document["input"]["shape"]),
            output=str(document["output"]),
            nodes=tuple(_node_from_json(entry) for entry in document["nodes"]),
            metadata=dict(document["metadata"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GraphError(f"{origin} is damaged ({error!r}); export the model again") from error
    check_wiring(graph, origin=origin)
    return graph


def check_wiring(graph: Graph, *, origin: str) -> None:
    """Checks that every wire is written once, before it is read, and that kept indices lie inside their wire.

    Raises:
        GraphError: naming the node.
    """
    known = {graph.input}
    for node in graph.nodes:
        if node.op not in OPERATORS:
            raise GraphError(f"{origin}: node {node.name!r} has the unknown operator {node.op!r}")
        for wire in node.inputs:
            if wire not in known:
                raise GraphError(f"{origin}: node {node.name!r} reads {wire!r}, which nothing wrote before")
        if node.output in known:
            raise GraphError(f"{origin}: node {node.name!r} writes {node.output!r} a second time")
        known.add(node.output)
        if (node.kept is None) != (node.op != "relu"):
            raise GraphError(f"{origin}: node {node.name!r} must have kept elements if and only if it is a relu")
        if node.kept is not None and len(node.kept):
            increasing = bool(np.all(np.diff(node.kept) > 0))
            size = prod(node.shape)
            if not increasing or node.kept[0] < 0 or node.kept[-1] >= size:
                raise GraphError(f"{origin}: node {node.name!r} has kept indices outside its {size} elements")
    if graph.output not in known:
        raise GraphError(f"{origin}: the output {graph.output!r} is never written")


def _shape(value: object) -> Shape:
    if not isinstance(value, list | tuple) or not all(type(size) is int and size > 0 for size in value):
        raise ValueError(f"a shape must be a list of positive integers, got {value!r}")
    return tuple(value)


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError(f"expected a list of integers, got {value!r}")
    return tuple(value)


def _node_to_json(node: Node) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": node.name,
        "op": node.op,
        "inputs": node.inputs,
        "output": node.output,
        "shape": node.shape,
        "attrs": dict(node.attrs),
        "param_shapes": dict(node.param_shapes),
    }
    if node.kept is not None:
        bits = np.zeros(prod(node.shape), dtype=bool)
        bits[node.kept] = True
        # One bit an element, first element in the lowest bit: at most 1/6 byte an element as text.
        entry["kept"] = (
            "all" if bits.all() else base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()
        )
    return entry


def _node_from_json(entry: Mapping[str, Any]) -> Node:
    shape = _shape(entry["shape"])
    kept: npt.NDArray[np.int64] | None = None
    if "kept" in entry:
        size = prod(shape)
        if entry["kept"] == "all":
            kept = np.arange(size, dtype=np.int64)
        else:
            packed = np.frombuffer(base64.b64decode(entry["kept"], validate=True), dtype=np.uint8)
            if len(packed) != -(-size // 8):
                raise ValueError(f"kept elements of {entry['name']!r} do not match its shape")
            kept = np.flatnonzero(np.unpackbits(packed, count=size, bitorder="little")).astype(np.int64)
    return Node(
        name=str(entry["name"]),
        op=str(entry["op"]),
        inputs=tuple(str(wire) for wire in entry["inputs"]),
        output=str(entry["output"]),
        shape=shape,
        attrs={key: value if type(value) is int else _integers(value) for key, value in dict(entry["attrs"]).items()},
        param_shapes={key: _shape(value) for key, value in dict(entry["param_shapes"]).items()},
        kept=kept,
    )
