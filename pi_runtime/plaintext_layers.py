"""Seconds of each layer in plaintext, from onnxruntime's own profile of runs that serve for nothing else.

The session is optimised like the one that is timed. Its kernels are those of onnxruntime, not the nodes of the file: a
ReLU or an addition that went into a convolution has no kernel of its own, so its time is the convolution's and it has
no layer here. Kernels of no node, which change the layout of memory, stand together as ``layout``. A profiled run is
slower than a timed one by what the profiler writes down, some microseconds a kernel, and what lies between two kernels
is in no layer: the layers do not add up to the latency.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from pi_runtime.backend import Cost, LayerCost
from pi_runtime.graph import Graph, Node

LAYOUT = "layout"
_KERNEL = "_kernel_time"
_WIRE = re.compile(r"^(?:fused )?(?P<wire>.*?)(?:_nchwc)?(?:_token_\d+)?$")
"""onnxruntime names a kernel after the node or its output, which are one here; fused, re-laid and repeated it adds."""


def profile_layers(
    model: Path, graph: Graph, options: onnxruntime.SessionOptions, *, runs: int
) -> tuple[tuple[LayerCost, ...], ...]:
    """The layers of ``runs`` inferences of one image of noise, after one that does not count, in the graph's order.

    Args:
        model: the ONNX file of ``graph``.
        options: threads and severity of the session; profiling is switched on in them.
    """
    proto = onnx.load_model(model)
    for node in proto.graph.node:
        node.name = node.output[0]
    owners = _owners(proto.graph, graph)
    image = np.random.default_rng(0).standard_normal((1, *graph.input_shape), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="pi-profile-") as directory:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "run")
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, {graph.input: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return tuple(_layers(graph, owners, kernels) for kernels in list(_runs(events))[1:])


def _owners(proto: onnx.GraphProto, graph: Graph) -> dict[str, Node]:
    """The graph's node that each wire of the file belongs to: its writer, or the one that a pattern ends in."""
    known = {node.output: node for node in graph.nodes}
    for node in reversed(proto.node):
        for wire in node.output:
            if wire in known:
                continue
            readers = (reader for reader in proto.node if wire in reader.input and reader.output[0] in known)
            if (reader := next(readers, None)) is not None:
                known[wire] = known[reader.output[0]]
    return known


def _runs(events: list[dict[str, Any]]) -> Iterator[list[tuple[str, float]]]:
    """(Kernel, seconds) of each run, in its order."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    kernels = sorted(
        (event["ts"], event["name"].removesuffix(_KERNEL), event["dur"] / 1e6)
        for event in events
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL)
    )
    for start, end in spans:
        yield [(name, seconds) for at, name, seconds in kernels if start <= at < end]


def _layers(graph: Graph, owners: Mapping[str, Node], kernels: list[tuple[str, float]]) -> tuple[LayerCost, ...]:
    """The seconds of one run by layer; a layer without a kernel is left out."""
    booked = [(_node_of(kernel, owners), seconds) for kernel, seconds in kernels]
    present = {id(node) for node, _ in booked if node is not None}
    spent: dict[int, float] = {}
    layout_s = 0.0
    for node, seconds in booked:
        if node is None:
            layout_s += seconds
        else:
            layer = id(_convolution_of(node, owners, present) or node)
            spent[layer] = spent.get(layer, 0.0) + seconds
    found = [
        LayerCost(
            name=node.name,
            op=node.op,
            relu_count=node.relu_count,
            phase="online",
            cost=Cost(seconds=spent[id(node)]),
        )
        for node in graph.nodes
        if id(node) in spent
    ]
    if layout_s:
        found.append(LayerCost(name=LAYOUT, op=LAYOUT, relu_count=0, phase="online", cost=Cost(seconds=layout_s)))
    return tuple(found)


def _node_of(kernel: str, owners: Mapping[str, Node]) -> Node | None:
    match = _WIRE.match(kernel)
    return owners.get(kernel) or (owners.get(match["wire"]) if match is not None else None)


def _convolution_of(node: Node, owners: Mapping[str, Node], present: set[int]) -> Node | None:
    """The convolution that the kernel of ``node`` computes too; None where it computes none.

    onnxruntime may name the kernel of a group after the last output. The group's convolution then has no kernel of its
    own, nor has anything between the two.
    """
    if node.op in ("conv", "linear"):
        return node
    for wire in node.inputs:
        before = owners.get(wire)
        if before is not None and id(before) not in present:
            found = _convolution_of(before, owners, present)
            if found is not None:
                return found
    return None
