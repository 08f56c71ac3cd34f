"""Reads an ONNX file, whoever made it, as a :class:`pi_runtime.graph.Graph`.

Anything outside the operator set is refused by name, with the node and what to do. Shapes come from ONNX's own shape
inference. The pattern ``Gather -> Relu -> ScatterElements`` over one list of indices, and a ``PRelu`` whose slopes are
0 and 1, are read as a ReLU layer that kept some elements.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from pi_runtime.errors import GraphError
from pi_runtime.graph import METADATA_KEY, Attribute, Graph, Node, Shape, check_wiring

Array = npt.NDArray[Any]


def load_onnx(path: Path) -> Graph:
    """Reads ``path`` into a graph with parameters.

    Raises:
        GraphError: the file is missing, truncated, not ONNX, or holds something outside the operator set.
    """
    try:
        proto = onnx.load_model(path)
    except FileNotFoundError as error:
        raise GraphError(f"there is no ONNX file {path}; make one with `pi-pipeline export`") from error
    except (OSError, DecodeError, ValueError) as error:
        raise _not_whole(str(path), error) from error
    return read_onnx(proto, origin=str(path))


def read_onnx(proto: onnx.ModelProto, *, origin: str) -> Graph:
    """As :func:`load_onnx`, from a model in memory; ``origin`` names it in errors."""
    try:
        onnx.checker.check_model(proto)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise _not_whole(origin, error) from error
    graph = _Reader(proto, origin).read()
    check_wiring(graph, origin=origin)
    return graph


def _not_whole(origin: str, error: Exception) -> GraphError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return GraphError(f"{origin} is not a whole ONNX model ({reason}); export it again")


class _Reader:
    def __init__(self, proto: onnx.ModelProto, origin: str) -> None:
        self.proto = proto
        self.origin = origin
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        self.shapes: dict[str, tuple[int | None, ...]] = {
            info.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in info.type.tensor_type.shape.dim
            )
            for info in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        }
        self.producer = {wire: node for node in proto.graph.node for wire in node.output}
        self.alias: dict[str, str] = {}
        self.nodes: list[Node] = []

    def read(self) -> Graph:
        inputs = [info for info in self.proto.graph.input if info.name not in self.constants]
        if len(inputs) != 1 or len(self.proto.graph.output) != 1:
            raise GraphError(f"{self.origin} must have one input (images) and one output (logits)")
        self._read_constants()
        absorbed = self._pattern_wires()
        for node in self.proto.graph.node:
            if node.output[0] in absorbed or node.op_type == "Constant":
                continue
            handler = _HANDLERS.get(node.op_type)
            if handler is None:
                raise GraphError(
                    f"{self.origin}: node {_name(node)!r} is a {node.op_type}, outside the operator set"
                    f" ({', '.join(sorted(_HANDLERS))}); replace it before the export"
                )
            handler(self, node)
        return Graph(
            input=inputs[0].name,
            input_shape=self._shape(inputs[0].name),
            output=self._wire(self.proto.graph.output[0].name),
            nodes=tuple(self.nodes),
            metadata=self._metadata(),
        )

    def _metadata(self) -> Mapping[str, Any]:
        for prop in self.proto.metadata_props:
            if prop.key == METADATA_KEY:
                try:
                    facts = json.loads(prop.value)
                except json.JSONDecodeError as error:
                    raise GraphError(f"{self.origin}: its {METADATA_KEY} metadata is not JSON") from error
                if isinstance(facts, dict):
                    return facts
                raise GraphError(f"{self.origin}: its {METADATA_KEY} metadata is not an object")
        return {}

    def _read_constants(self) -> None:
        for node in self.proto.graph.node:
            if node.op_type == "Constant":
                value = _attributes(node).get("value")
                if not isinstance(value, onnx.TensorProto):
                    raise GraphError(f"{self.origin}: Constant {_name(node)!r} is no tensor")
                self.constants[node.output[0]] = numpy_helper.to_array(value)

    def _pattern_wires(self) -> set[str]:
        """The outputs of the nodes that a kept-elements pattern takes in: its Gather, Relu, Shape and Expand."""
        absorbed: set[str] = set()
        for node in self.proto.graph.node:
            if node.op_type == "ScatterElements":
                absorbed.update(part.output[0] for part in self._pattern(node)[1])
        return absorbed

    def _pattern(self, scatter: onnx.NodeProto) -> tuple[npt.NDArray[np.int64], list[onnx.NodeProto]]:
        """The kept indices of ``Gather -> Relu -> ScatterElements`` and the nodes in between."""
        refusal = GraphError(
            f"{self.origin}: ScatterElements {_name(scatter)!r} is not the end of Gather -> Relu -> ScatterElements"
            " over one list of indices on axis 1; only that use is in the operator set"
        )
        flat, index_wire, update_wire = scatter.input
        relu = self.producer.get(update_wire)
        gather = self.producer.get(relu.input[0]) if relu is not None and relu.op_type == "Relu" else None
        if relu is None or gather is None or gather.op_type != "Gather" or gather.input[0] != flat:
            raise refusal
        kept = self.constants.get(gather.input[1])
        parts = [gather, relu]
        expand = self.producer.get(index_wire)
        if expand is not None and expand.op_type == "Expand":
            parts.append(expand)
            index_wire = expand.input[0]
            size = self.producer.get(expand.input[1])
            if size is not None and size.op_type == "Shape":
                parts.append(size)
        rows = self.constants.get(index_wire)
        axes = (_attributes(gather).get("axis", 0), _attributes(scatter).get("axis", 0))
        reduction = _attributes(scatter).get("reduction", b"none")
        if kept is None or rows is None or axes != (1, 1) or reduction not in (b"none", "none"):
            raise refusal
        if rows.shape != (1, kept.size) or not np.array_equal(rows[0], kept):
            raise refusal
        order = np.sort(kept.reshape(-1)).astype(np.int64)
        if len(np.unique(order)) != len(order):
            raise refusal
        return order, parts

    # One method an operator type.

    def conv(self, node: onnx.NodeProto) -> None:
        attrs = _attributes(node)
        weight = self._param(node, 1)
        if weight.ndim != 4:
            raise self._refuse(node, "only convolutions over height and width are in the operator set")
        bias = self._param(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros(len(weight), np.float32)
        self._add(
            node,
            "conv",
            [node.input[0]],
            {
                "strides": _ints(attrs, "strides", (1, 1)),
                "pads": self._pads(node, attrs),
                "dilations": _ints(attrs, "dilations", (1, 1)),
                "groups": int(attrs.get("group", 1)),
            },
            {"weight": weight, "bias": bias},
        )

    def gemm(self, node: onnx.NodeProto) -> None:
        attrs = _attributes(node)
        if attrs.get("transA", 0) or attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0:
            raise self._refuse(node, "only x @ W + b is in the operator set (alpha = beta = 1, transA = 0)")
        weight = self._param(node, 1)
        weight = weight if attrs.get("transB", 0) else weight.T
        bias = self._param(node, 2) if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        self._add(node, "linear", [node.input[0]], {}, {"weight": weight, "bias": bias})

    def matmul(self, node: onnx.NodeProto) -> None:
        weight = self._param(node, 1)
        if weight.ndim != 2:
            raise self._refuse(node, "only a product with a constant matrix is in the operator set")
        zeros = np.zeros(weight.shape[1], np.float32)
        self._add(node, "linear", [node.input[0]], {}, {"weight": weight.T, "bias": zeros})

    def add(self, node: onnx.NodeProto) -> None:
        constant = [wire for wire in node.input if wire in self.constants]
        if constant:
            self._add_constant(node, constant[0])
            return
        left, right = (self._shape(wire) for wire in node.input)
        if left != right:
            raise self._refuse(node, f"adds wires of shapes {left} and {right}; they must be equal")
        self._add(node, "add", list(node.input), {}, {})

    def _add_constant(self, node: onnx.NodeProto, constant: str) -> None:
        """A bias behind MatMul: an addition of a constant vector becomes an affine layer of slope one."""
        wire = next((name for name in node.input if name not in self.constants), None)
        if wire is None:
            raise self._refuse(node, "adds two constants")
        shape = self._shape(wire)
        value = self.constants[constant].astype(np.float32)
        channels = (shape[0],) + (1,) * (len(shape) - 1)
        try:
            bias = np.broadcast_to(value.reshape(value.shape[-len(shape) :]), channels).reshape(-1)
        except ValueError as error:
            raise self._refuse(node, "the constant must be one number a channel") from error
        self._add(node, "affine", [wire], {}, {"weight": np.ones(shape[0], np.float32), "bias": bias})

    def batch_norm(self, node: onnx.NodeProto) -> None:
        scale, shift, mean, var = (self._param(node, position) for position in range(1, 5))
        weight = scale / np.sqrt(var + np.float32(_attributes(node).get("epsilon", 1e-5)))
        self._add(node, "affine", [node.input[0]], {}, {"weight": weight, "bias": shift - mean * weight})

    def relu(self, node: onnx.NodeProto) -> None:
        size = prod(self._shape(node.output[0]))
        self._add(node, "relu", [node.input[0]], {}, {}, kept=np.arange(size, dtype=np.int64))

    def prelu(self, node: onnx.NodeProto) -> None:
        slope = self._param(node, 1)
        shape = self._shape(node.output[0])
        if not np.isin(slope, (0.0, 1.0)).all():
            raise self._refuse(node, "only a PRelu with slopes 0 (a ReLU) and 1 (no ReLU) is in the operator set")
        try:
            keep = np.broadcast_to(slope.reshape(slope.shape[-len(shape) :]), shape) == 0.0
        except ValueError as error:
            raise self._refuse(node, f"its slope of shape {slope.shape} does not fit {shape}") from error
        kept = np.flatnonzero(keep).astype(np.int64)
        if len(kept):
            self._add(node, "relu", [node.input[0]], {}, {}, kept=kept)
        else:
            self.identity(node)

    def scatter(self, node: onnx.NodeProto) -> None:
        kept, parts = self._pattern(node)
        name = _name(parts[1]).removesuffix(".rectified")
        self._add(node, "relu", [node.input[0]], {}, {}, kept=kept, name=name)

    def avg_pool(self, node: onnx.NodeProto) -> None:
        attrs = self._pool_attrs(node)
        attrs["count_include_pad"] = int(_attributes(node).get("count_include_pad", 0))
        self._add(node, "avg_pool", [node.input[0]], attrs, {})

    def max_pool(self, node: onnx.NodeProto) -> None:
        if _ints(_attributes(node), "dilations", (1, 1)) != (1, 1):
            raise self._refuse(node, "dilated pooling is outside the operator set")
        self._add(node, "max_pool", [node.input[0]], self._pool_attrs(node), {})

    def global_avg_pool(self, node: onnx.NodeProto) -> None:
        self._global_pool(node, self._shape(node.output[0]))

    def reduce_mean(self, node: onnx.NodeProto) -> None:
        attrs = _attributes(node)
        axes = attrs.get("axes")
        if axes is None and len(node.input) > 1:
            axes = self.constants[node.input[1]].tolist() if node.input[1] in self.constants else None
        if sorted(axis % 4 for axis in axes or ()) != [2, 3] or len(self._shape(node.input[0])) != 3:
            raise self._refuse(node, "only a mean over height and width is in the operator set")
        self._global_pool(node, self._shape(node.output[0]))

    def _global_pool(self, node: onnx.NodeProto, shape: Shape) -> None:
        channels, height, width = self._shape(node.input[0])
        attrs: dict[str, Attribute] = {
            "kernel": (height, width),
            "strides": (height, width),
            "pads": (0, 0, 0, 0),
            "count_include_pad": 0,
        }
        pooled = (channels, 1, 1)
        if shape == pooled:
            self._add(node, "avg_pool", [node.input[0]], attrs, {})
            return
        inner = f"{node.output[0]}.pooled"
        self._append(_name(node), "avg_pool", [node.input[0]], inner, pooled, attrs, {}, None)
        self._append(f"{_name(node)}.flat", "reshape", [inner], node.output[0], shape, {}, {}, None)

    def reshape(self, node: onnx.NodeProto) -> None:
        source, target = self._shape(node.input[0]), self._shape(node.output[0])
        if prod(source) != prod(target):
            raise self._refuse(node, "it mixes images of the batch")
        if source == target:
            self.identity(node)
        else:
            self._add(node, "reshape", [node.input[0]], {}, {})

    def identity(self, node: onnx.NodeProto) -> None:
        self.alias[node.output[0]] = self._wire(node.input[0])

    def concat(self, node: onnx.NodeProto) -> None:
        rank = len(self._shape(node.output[0])) + 1
        axis = int(_attributes(node)["axis"]) % rank
        if axis == 0 or any(wire in self.constants for wire in node.input):
            raise self._refuse(node, "only wires can be concatenated, and not along the batch")
        self._add(node, "concat", list(node.input), {"axis": axis - 1}, {})

    def pad(self, node: onnx.NodeProto) -> None:
        pads = self._operand(node, 1)
        value = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        mode = _attributes(node).get("mode", b"constant")
        rank = len(self._shape(node.output[0])) + 1
        zeros = mode in (b"constant", "constant") and (value is None or not value.any())
        if not zeros or len(pads) != 2 * rank or pads[0] or pads[rank] or min(pads) < 0:
            raise self._refuse(node, "only padding of images with zeros is in the operator set")
        attrs: dict[str, Attribute] = {"pads_before": tuple(pads[1:rank]), "pads_after": tuple(pads[rank + 1 :])}
        self._add(node, "pad", [node.input[0]], attrs, {})

    def slice(self, node: onnx.NodeProto) -> None:
        sizes = (1, *self._shape(node.input[0]))
        starts, stops = self._operand(node, 1), self._operand(node, 2)
        axes = self._operand(node, 3) if len(node.input) > 3 else list(range(len(starts)))
        steps = self._operand(node, 4) if len(node.input) > 4 else [1] * len(starts)
        bounds = [(0, size, 1) for size in sizes]
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
            if axis % len(sizes) == 0 or step < 1:
                raise self._refuse(node, "only slices of images with positive steps are in the operator set")
            bounds[axis] = slice(start, stop, step).indices(sizes[axis])
        first, last, step_column = zip(*bounds[1:], strict=True)
        self._add(node, "slice", [node.input[0]], {"starts": first, "stops": last, "steps": step_column}, {})

    # Plumbing.

    def _pool_attrs(self, node: onnx.NodeProto) -> dict[str, Attribute]:
        attrs = _attributes(node)
        if attrs.get("ceil_mode", 0):
            raise self._refuse(node, "ceil_mode is outside the operator set")
        return {
            "kernel": _ints(attrs, "kernel_shape", ()),
            "strides": _ints(attrs, "strides", (1, 1)),
            "pads": self._pads(node, attrs),
        }

    def _pads(self, node: onnx.NodeProto, attrs: Mapping[str, Any]) -> tuple[int, ...]:
        if attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET", b"VALID"):
            raise self._refuse(node, "auto_pad is outside the operator set; give explicit pads")
        pads = _ints(attrs, "pads", (0, 0, 0, 0))
        if len(pads) != 4:
            raise self._refuse(node, "only operations over height and width are in the operator set")
        return pads

    def _operand(self, node: onnx.NodeProto, position: int) -> list[int]:
        if position >= len(node.input) or node.input[position] not in self.constants:
            raise self._refuse(node, "its sizes must be constants")
        return [int(value) for value in self.constants[node.input[position]].reshape(-1)]

    def _param(self, node: onnx.NodeProto, position: int) -> npt.NDArray[np.float32]:
        value = self.constants.get(node.input[position])
        if value is None:
            raise self._refuse(node, "its weights must be constants of the graph")
        if not np.isfinite(value).all():
            raise self._refuse(node, f"its constant {node.input[position]!r} is not finite")
        return value.astype(np.float32)

    def _wire(self, name: str) -> str:
        return self.alias.get(name, name)

    def _shape(self, wire: str) -> Shape:
        shape = self.shapes.get(wire)
        if shape is None or len(shape) < 2 or any(size is None for size in shape[1:]):
            raise GraphError(f"{self.origin}: the shape of wire {wire!r} is not known; only the batch may stay open")
        return tuple(size for size in shape[1:] if size is not None)

    def _refuse(self, node: onnx.NodeProto, rule: str) -> GraphError:
        return GraphError(f"{self.origin}: {node.op_type} {_name(node)!r}: {rule}")

    def _add(
        self,
        node: onnx.NodeProto,
        op: str,
        inputs: list[str],
        attrs: dict[str, Attribute],
        params: dict[str, npt.NDArray[np.float32]],
        *,
        kept: npt.NDArray[np.int64] | None = None,
        name: str | None = None,
    ) -> None:
        wire = node.output[0]
        self._append(name or _name(node), op, inputs, wire, self._shape(wire), attrs, params, kept)

    def _append(
        self,
        name: str,
        op: str,
        inputs: list[str],
        output: str,
        shape: Shape,
        attrs: dict[str, Attribute],
        params: dict[str, npt.NDArray[np.float32]],
        kept: npt.NDArray[np.int64] | None,
    ) -> None:
        contiguous = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in params.items()}
        self.nodes.append(
            Node(
                name=name,
                op=op,
                inputs=tuple(self._wire(wire) for wire in inputs),
                output=output,
                shape=shape,
                attrs=attrs,
                param_shapes={key: value.shape for key, value in contiguous.items()},
                params=contiguous,
                kept=kept,
            )
        )


_HANDLERS: dict[str, Callable[[_Reader, onnx.NodeProto], None]] = {
    "Add": _Reader.add,
    "AveragePool": _Reader.avg_pool,
    "BatchNormalization": _Reader.batch_norm,
    "Concat": _Reader.concat,
    "Conv": _Reader.conv,
    "Dropout": _Reader.identity,
    "Flatten": _Reader.reshape,
    "Gemm": _Reader.gemm,
    "GlobalAveragePool": _Reader.global_avg_pool,
    "Identity": _Reader.identity,
    "MatMul": _Reader.matmul,
    "MaxPool": _Reader.max_pool,
    "PRelu": _Reader.prelu,
    "Pad": _Reader.pad,
    "ReduceMean": _Reader.reduce_mean,
    "Relu": _Reader.relu,
    "Reshape": _Reader.reshape,
    "ScatterElements": _Reader.scatter,
    "Slice": _Reader.slice,
}


def _name(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _ints(attrs: Mapping[str, Any], key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in attrs.get(key, default))
