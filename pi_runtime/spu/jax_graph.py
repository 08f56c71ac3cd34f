"""The graph as a jax function, as a user of SPU would write it: public shapes, masks and attributes, secret operands.

A ReLU layer takes its kept elements out, compares those alone, and puts them back, all at public places and without
traffic. Putting them back is a gather as well, from the layer with its rectified elements appended: jax's scatter
becomes a loop that SPU walks an element at a time, and a ``where`` over the layer compares all of it, which takes as
long on loopback under ``spu-semi2k`` and sends 72 bytes an element each way.

Legend: B batch. Wires are float32 [B, ...] with the shapes of the graph behind the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from pi_runtime.graph import Graph, Node

Value = Any
"""A jax array, or what stands for one while jax traces."""

_SPATIAL = ("NCHW", "OIHW", "NCHW")


def parameter_shapes(graph: Graph) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters, in the order in which :func:`jax_function` takes them."""
    return [
        (f"{position}.{name}", node.param_shapes[name])
        for position, node in enumerate(graph.nodes)
        for name in sorted(node.param_shapes)
    ]


def jax_function(graph: Graph) -> Callable[..., Value]:
    """``logits(images, *parameters)``: images [B, C, H, W] to logits [B, classes]."""

    def logits(images: Value, *values: Value) -> Value:
        wires = {graph.input: images}
        rest = iter(values)
        for node in graph.nodes:
            params = {name: next(rest) for name in sorted(node.param_shapes)}
            wires[node.output] = _OPERATORS[node.op](node, [wires[wire] for wire in node.inputs], params)
        return wires[graph.output]

    return logits


def _conv(node: Node, inputs: Sequence[Value], params: dict[str, Value]) -> Value:
    """One convolution a group: SPU has none with groups, and none with dilations, so zeros are put into the kernel."""
    top, left, bottom, right = node.ints("pads")
    rows, columns = node.ints("dilations")
    groups = node.int("groups")
    weight = params["weight"]
    if (rows, columns) != (1, 1):
        weight = lax.pad(weight, jnp.float32(0), ((0, 0, 0), (0, 0, 0), (0, 0, rows - 1), (0, 0, columns - 1)))
    parts = [
        lax.conv_general_dilated(
            x, kernel, node.ints("strides"), ((top, bottom), (left, right)), dimension_numbers=_SPATIAL
        )
        for x, kernel in zip(jnp.split(inputs[0], groups, axis=1), jnp.split(weight, groups, axis=0), strict=True)
    ]
    whole = parts[0] if groups == 1 else jnp.concatenate(parts, axis=1)
    return whole + params["bias"][:, None, None]


def _linear(_node: Node, inputs: Sequence[Value], params: dict[str, Value]) -> Value:
    return inputs[0] @ params["weight"].T + params["bias"]


def _affine(node: Node, inputs: Sequence[Value], params: dict[str, Value]) -> Value:
    channels = (len(params["weight"]),) + (1,) * (len(node.shape) - 1)
    return inputs[0] * params["weight"].reshape(channels) + params["bias"].reshape(channels)


def _add(_node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    return inputs[0] + inputs[1]


def _relu(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    kept = node.kept
    assert kept is not None, "a relu says what it kept"
    flat = inputs[0].reshape(len(inputs[0]), -1)
    size = flat.shape[1]
    if len(kept) == size:
        return jnp.maximum(inputs[0], 0)
    if not len(kept):
        return inputs[0]
    source = np.arange(size)
    source[kept] = size + np.arange(len(kept))
    rectified = jnp.maximum(flat[:, kept], 0)
    return jnp.concatenate([flat, rectified], axis=1)[:, source].reshape(inputs[0].shape)


def _window(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Kernel, strides and padding of a pooling, for all four dimensions."""
    top, left, bottom, right = node.ints("pads")
    return (1, 1, *node.ints("kernel")), (1, 1, *node.ints("strides")), ((0, 0), (0, 0), (top, bottom), (left, right))


def _avg_pool(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    kernel, strides, padding = _window(node)
    _, height, width = inputs[0].shape[1:]
    summed = lax.reduce_window(inputs[0], 0.0, lax.add, kernel, strides, padding)
    # How many elements each window has is public, and worked out here, in the clear.
    ones = np.pad(
        np.ones((height, width), np.float32), padding[2:], constant_values=float(node.int("count_include_pad"))
    )
    rows = [slice(i * strides[2], i * strides[2] + kernel[2]) for i in range(node.shape[1])]
    columns = [slice(j * strides[3], j * strides[3] + kernel[3]) for j in range(node.shape[2])]
    counts = np.array([[ones[r, c].sum() for c in columns] for r in rows], np.float32)
    return summed * (1 / counts)


def _max_pool(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    kernel, strides, padding = _window(node)
    return lax.reduce_window(inputs[0], -jnp.inf, lax.max, kernel, strides, padding)


def _reshape(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    return inputs[0].reshape(len(inputs[0]), *node.shape)


def _concat(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    return jnp.concatenate(inputs, axis=node.int("axis") + 1)


def _pad(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    return jnp.pad(inputs[0], ((0, 0), *zip(node.ints("pads_before"), node.ints("pads_after"), strict=True)))


def _slice(node: Node, inputs: Sequence[Value], _params: dict[str, Value]) -> Value:
    cuts = zip(node.ints("starts"), node.ints("stops"), node.ints("steps"), strict=True)
    return inputs[0][(slice(None), *(slice(start, stop, step) for start, stop, step in cuts))]


_OPERATORS = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "add": _add,
    "relu": _relu,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "reshape": _reshape,
    "concat": _concat,
    "pad": _pad,
    "slice": _slice,
}
