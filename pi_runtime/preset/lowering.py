"""Rewrites a graph into what the protocol has: MaxPool becomes slices, subtractions and ReLU layers.

max(a, b) = a + relu(b - a), taken pairwise over the columns of the window and then over its rows, so a window of k
columns costs ceil(log2 k) ReLU layers, each of them counted as ReLUs.
"""

from __future__ import annotations

from math import prod

import numpy as np

from pi_runtime.graph import Attribute, Graph, Node, Shape

EDGE = "edge"
"""Marks a padding that a maximum must never choose."""


def lower(graph: Graph) -> Graph:
    """The same function without ``max_pool``; new operations are ``sub`` (first minus second) and padding with EDGE."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _max_pool(node, graph.shapes[node.inputs[0]]) if node.op == "max_pool" else [node]
    return Graph(
        input=graph.input,
        input_shape=graph.input_shape,
        output=graph.output,
        nodes=tuple(nodes),
        metadata=graph.metadata,
    )


def _max_pool(node: Node, shape: Shape) -> list[Node]:
    nodes: list[Node] = []
    top, left, bottom, right = node.ints("pads")
    wire = node.inputs[0]
    if any(node.ints("pads")):
        shape = (shape[0], shape[1] + top + bottom, shape[2] + left + right)
        wire = f"{node.name}.padded"
        pads: dict[str, Attribute] = {"pads_before": (0, top, left), "pads_after": (0, bottom, right), EDGE: 1}
        nodes.append(Node(name=wire, op="pad", inputs=(node.inputs[0],), output=wire, shape=shape, attrs=pads))
    for axis in (2, 1):
        size, stride = node.ints("kernel")[axis - 1], node.ints("strides")[axis - 1]
        count = (shape[axis] - size) // stride + 1
        shape = tuple(count if i == axis else extent for i, extent in enumerate(shape))
        columns = []
        for offset in range(size):
            column = f"{node.name}.axis{axis}.{offset}"
            bounds = {
                "starts": tuple(offset if i == axis else 0 for i in range(3)),
                "stops": tuple(
                    offset + (count - 1) * stride + 1 if i == axis else extent for i, extent in enumerate(shape)
                ),
                "steps": tuple(stride if i == axis else 1 for i in range(3)),
            }
            nodes.append(Node(name=column, op="slice", inputs=(wire,), output=column, shape=shape, attrs=bounds))
            columns.append(column)
        wire = _tournament(nodes, columns, shape, f"{node.name}.axis{axis}")
    last = nodes[-1]
    nodes[-1] = Node(
        name=last.name, op=last.op, inputs=last.inputs, output=node.output, shape=last.shape, attrs=last.attrs
    )
    return nodes


def _tournament(nodes: list[Node], wires: list[str], shape: Shape, name: str) -> str:
    """Appends the maximum of ``wires``, each of ``shape``; all pairs of a turn share one ReLU layer."""
    turn = 0
    while len(wires) > 1:
        pairs = len(wires) // 2
        firsts, seconds = wires[0 : 2 * pairs : 2], wires[1 : 2 * pairs : 2]
        stacked = (pairs * shape[0], *shape[1:])
        label = f"{name}.turn{turn}"

        def add(op: str, inputs: tuple[str, ...], suffix: str, out: Shape, label: str = label, **attrs: int) -> str:
            wire = f"{label}.{suffix}"
            kept = np.arange(prod(out), dtype=np.int64) if op == "relu" else None
            nodes.append(Node(name=wire, op=op, inputs=inputs, output=wire, shape=out, attrs=attrs, kept=kept))
            return wire

        first = add("concat", tuple(firsts), "first", stacked, axis=0)
        second = add("concat", tuple(seconds), "second", stacked, axis=0)
        gained = add("relu", (add("sub", (second, first), "difference", stacked),), "relu", stacked)
        best = add("add", (first, gained), "best", stacked)
        odd = wires[2 * pairs :]
        if pairs == 1:
            wires = [best, *odd]
        else:
            wires = []
            for pair in range(pairs):
                wire = f"{label}.pair{pair}"
                bounds = {
                    "starts": (pair * shape[0], 0, 0),
                    "stops": ((pair + 1) * shape[0], *shape[1:]),
                    "steps": (1, 1, 1),
                }
                nodes.append(Node(name=wire, op="slice", inputs=(best,), output=wire, shape=shape, attrs=bounds))
                wires.append(wire)
            wires += odd
        turn += 1
    return wires[0]
