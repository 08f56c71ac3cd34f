"""How a ReLU layer that kept some of its elements stands in an ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


def kept_relu(
    name: str, wire: str, output: str, shape: tuple[int, ...], kept: npt.NDArray[np.int64]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and constants of a ReLU over the elements ``kept``; the others pass as they are.

    ``Relu`` alone where every element is kept, else ``Reshape -> Gather -> Relu -> ScatterElements -> Reshape``, so
    that the size of the ``Relu`` is the count. Any batch size.

    Args:
        name: of the layer; inner nodes and constants are named after it.
        wire: the wire read, float32 [B, *shape].
        output: the wire written, of the same shape.
        shape: of the activation, without the batch.
        kept: sorted flat indices, int64; at least one, as a layer that kept none has no node.
    """
    size = int(np.prod(shape))
    assert 0 < len(kept) <= size, f"{name} keeps {len(kept)} of {size}"
    if len(kept) == size:
        return [helper.make_node("Relu", [wire], [output], name=name)], []
    constants = {
        "kept": kept.astype(np.int64),
        "kept_row": kept.astype(np.int64)[None, :],
        "flat": np.array([0, -1]),
        "shape": np.array([0, *shape]),
    }

    def inner(kind: str, inputs: list[str], what: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{name}.{what}"], name=f"{name}.{what}", **attributes)

    nodes = [
        inner("Reshape", [wire, f"{name}.flat"], "flat_wire"),
        inner("Gather", [f"{name}.flat_wire", f"{name}.kept"], "gathered", axis=1),
        inner("Relu", [f"{name}.gathered"], "rectified"),
        inner("Shape", [f"{name}.rectified"], "size"),
        inner("Expand", [f"{name}.kept_row", f"{name}.size"], "rows"),
        inner("ScatterElements", [f"{name}.flat_wire", f"{name}.rows", f"{name}.rectified"], "scattered", axis=1),
        helper.make_node("Reshape", [f"{name}.scattered", f"{name}.shape"], [output], name=name),
    ]
    return nodes, [numpy_helper.from_array(value, f"{name}.{key}") for key, value in constants.items()]
