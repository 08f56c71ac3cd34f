"""Writes a traced module as ONNX, an operation at a time."""

from __future__ import annotations

import operator
from collections import Counter
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from pi_runtime.errors import ExportError
from pi_runtime.relu_pattern import kept_relu
from pi_runtime.tracing import TRACE_BATCH, relu_mask_of, wire_shape

OPSET = 17  # the newest that onnxruntime 1.20 and older readers know; has every operator used here
IR_VERSION = 8  # the first that goes with it
INPUT, OUTPUT = "input", "logits"

_RELU_CALLS = {F.relu, torch.relu, "relu", "relu_", torch.relu_}
_ADD_CALLS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_FLATTEN_CALLS = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}


class OnnxWriter:
    """Turns one traced module into an ONNX model; one method an operation."""

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
        self.traced = traced
        self.modules = dict(traced.named_modules())
        self.input_shape = input_shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.wires: dict[fx.Node, str] = {}
        self.names: dict[fx.Node, str] = {}
        self.calls: Counter[str] = Counter()
        self.relu_total = 0
        self.relu_count = 0

    def write(self) -> onnx.ModelProto:
        output: fx.Node | None = None
        for node in self.traced.graph.nodes:
            match node.op:
                case "placeholder":
                    self._placeholder(node)
                case "output":
                    output = _args(node)[0]
                case "get_attr":
                    raise ExportError(f"{node.target}: a tensor that is not a layer's parameter cannot be exported")
                case _:
                    self._operation(node)
        if output not in self.wires:
            raise ExportError("the network must return one tensor, the logits")
        shape = wire_shape(output)
        self._emit("Identity", [self.wires[output]], OUTPUT)
        graph = helper.make_graph(
            self.nodes,
            "classifier",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *self.input_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *shape])],
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="pi-pipeline"
        )

    def _placeholder(self, node: fx.Node) -> None:
        if self.wires:
            raise ExportError(f"the network must take one tensor, the images; it also takes {node.name!r}")
        self.wires[node] = INPUT

    def _operation(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
            return
        target = node.target
        if target in _RELU_CALLS:
            self._relu(node, None)
        elif target in _ADD_CALLS:
            self._elementwise_sum(node)
        elif target in _FLATTEN_CALLS:
            self._reshape(node)
        elif "tensor_meta" not in node.meta:
            return  # a size, not a tensor: `_reshape` knows the shapes by itself
        elif target is operator.getitem:
            self._slice(node)
        elif target in (F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d):
            self._pool_call(node)
        elif target in (torch.mean, "mean"):
            self._mean(node)
        elif target in (torch.cat, torch.concat):
            self._concat(node)
        elif target is F.pad:
            self._pad(node)
        elif target in (F.dropout, "contiguous"):
            self.wires[node] = self._wire(_args(node)[0])
        else:
            name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
            raise self._refuse(node, str(name))

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        mask = relu_mask_of(module)
        if mask is not None or isinstance(module, nn.ReLU):
            self._relu(node, mask)
        elif isinstance(module, nn.Conv2d):
            self._conv(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            self._batch_norm(node, module)
        elif isinstance(module, nn.AvgPool2d):
            _require(node, module.divisor_override is None, "divisor_override is not supported")
            self._pool(node, "AveragePool", module.kernel_size, module.stride, module.padding, module.ceil_mode)
            self.nodes[-1].attribute.append(helper.make_attribute("count_include_pad", int(module.count_include_pad)))
        elif isinstance(module, nn.MaxPool2d):
            _require(node, _pair(module.dilation) == (1, 1), "dilation is not supported")
            self._pool(node, "MaxPool", module.kernel_size, module.stride, module.padding, module.ceil_mode)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self._global_pool(node)
        elif isinstance(module, nn.Flatten):
            self._reshape(node)
        elif isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
            self.wires[node] = self._wire(_args(node)[0])
        else:
            raise self._refuse(node, type(module).__name__)

    # Operations. Each writes the wire of its fx node.

    def _conv(self, node: fx.Node, conv: nn.Conv2d) -> None:
        _require(node, conv.padding_mode == "zeros" or not any(_pair(conv.padding)), "padding must be with zeros")
        _require(node, not isinstance(conv.padding, str), "padding must be given as numbers")
        top, left = _pair(conv.padding)
        inputs = [self._wire(_args(node)[0]), self._parameter(node, "weight", conv.weight)]
        if conv.bias is not None:
            inputs.append(self._parameter(node, "bias", conv.bias))
        self._emit(
            "Conv",
            inputs,
            node,
            kernel_shape=list(conv.kernel_size),
            strides=list(_pair(conv.stride)),
            pads=[top, left, top, left],
            dilations=list(_pair(conv.dilation)),
            group=conv.groups,
        )

    def _linear(self, node: fx.Node, linear: nn.Linear) -> None:
        _require(node, len(wire_shape(node)) == 1, "a linear layer must see flat features")
        bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
        inputs = [
            self._wire(_args(node)[0]),
            self._parameter(node, "weight", linear.weight),
            self._parameter(node, "bias", bias),
        ]
        self._emit("Gemm", inputs, node, transB=1)

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        _require(node, norm.running_mean is not None, "a BatchNorm without running statistics cannot be exported")
        assert norm.running_mean is not None
        assert norm.running_var is not None
        size = norm.num_features
        tensors = {
            "weight": norm.weight if norm.weight is not None else torch.ones(size),
            "bias": norm.bias if norm.bias is not None else torch.zeros(size),
            "mean": norm.running_mean,
            "var": norm.running_var,
        }
        inputs = [self._wire(_args(node)[0]), *(self._parameter(node, key, value) for key, value in tensors.items())]
        self._emit("BatchNormalization", inputs, node, epsilon=norm.eps)

    def _relu(self, node: fx.Node, mask: torch.Tensor | None) -> None:
        shape = wire_shape(node)
        wire = self._wire(_args(node)[0])
        self.relu_total += prod(shape)
        if mask is None:
            kept = np.arange(prod(shape))
        else:
            _require(node, tuple(mask.shape) == shape, f"relu_mask is {tuple(mask.shape)}, the activation {shape}")
            flat = mask.detach().cpu().reshape(-1)
            _require(node, bool(((flat == 0) | (flat == 1)).all()), "relu_mask must hold only 0 and 1")
            kept = np.flatnonzero(flat.numpy())
        self.relu_count += len(kept)
        if len(kept) == 0:
            self.wires[node] = wire
            return
        name = self._name(node)
        self.wires[node] = f"{name}.out"
        nodes, constants = kept_relu(name, wire, self.wires[node], shape, kept.astype(np.int64))
        self.nodes += nodes
        self.initializers |= {constant.name: constant for constant in constants}

    def _elementwise_sum(self, node: fx.Node) -> None:
        _require(
            node, all(isinstance(arg, fx.Node) for arg in _args(node)) and not _kwargs(node), "adds only two wires"
        )
        left, right = _args(node)
        _require(node, wire_shape(left) == wire_shape(right), "adds wires of different shapes")
        self._emit("Add", [self._wire(left), self._wire(right)], node)

    def _reshape(self, node: fx.Node) -> None:
        constant = self._constant(f"{self._name(node)}.shape", np.array([0, *wire_shape(node)]))
        self._emit("Reshape", [self._wire(_args(node)[0]), constant], node)

    def _slice(self, node: fx.Node) -> None:
        source, index = _args(node)
        index = index if isinstance(index, tuple) else (index,)
        rank = len(wire_shape(source)) + 1
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = (*index[:at], *[slice(None)] * (rank - len(index) + 1), *index[at + 1 :])
        plain = all(isinstance(item, slice) for item in index)
        _require(node, plain and index[0] == slice(None), "only slices of known bounds, and never of the batch")
        sizes = (TRACE_BATCH, *wire_shape(source))
        bounds = [(axis, *item.indices(sizes[axis])) for axis, item in enumerate(index) if item != slice(None)]
        _require(node, all(step > 0 for *_, step in bounds), "slices must have positive steps")
        if not bounds:
            self.wires[node] = self._wire(source)
            return
        axes, starts, stops, steps = (np.array(column) for column in zip(*bounds, strict=True))
        name = self._name(node)
        operands = {"starts": starts, "ends": stops, "axes": axes, "steps": steps}
        constants = [self._constant(f"{name}.{key}", value) for key, value in operands.items()]
        self._emit("Slice", [self._wire(source), *constants], node)

    def _pool_call(self, node: fx.Node) -> None:
        if node.target is F.adaptive_avg_pool2d:
            self._global_pool(node)
            return
        names = (
            "input",
            "kernel_size",
            "stride",
            "padding",
            "dilation" if node.target is F.max_pool2d else "ceil_mode",
        )
        given = dict(zip(names, _args(node), strict=False)) | _kwargs(node)
        plain = {"dilation": 1, "return_indices": False, "divisor_override": None}  # torch.fx writes some of them out
        unusual = [key for key, value in plain.items() if given.get(key, value) not in (value, (value, value))]
        _require(node, not unusual, f"{', '.join(unusual)} is not supported")
        operator_type = "MaxPool" if node.target is F.max_pool2d else "AveragePool"
        self._pool(
            node,
            operator_type,
            given["kernel_size"],
            given.get("stride"),
            given.get("padding", 0),
            bool(given.get("ceil_mode")),
        )
        if operator_type == "AveragePool":
            include = int(bool(given.get("count_include_pad", True)))
            self.nodes[-1].attribute.append(helper.make_attribute("count_include_pad", include))

    def _pool(self, node: fx.Node, kind: str, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> None:
        _require(node, not ceil_mode, "ceil_mode is not supported")
        top, left = _pair(padding)
        self._emit(
            kind,
            [self._wire(_args(node)[0])],
            node,
            kernel_shape=list(_pair(kernel)),
            strides=list(_pair(stride if stride is not None else kernel)),
            pads=[top, left, top, left],
        )

    def _global_pool(self, node: fx.Node) -> None:
        _require(node, wire_shape(node)[1:] == (1, 1), "adaptive pooling must go to 1x1")
        self._emit("GlobalAveragePool", [self._wire(_args(node)[0])], node)

    def _mean(self, node: fx.Node) -> None:
        arguments = dict(zip(("input", "dim", "keepdim"), _args(node), strict=False)) | _kwargs(node)
        dims = arguments.get("dim")
        dims = sorted(dim % 4 for dim in (dims if isinstance(dims, list | tuple) else [dims]) if dim is not None)
        _require(node, len(wire_shape(_args(node)[0])) == 3 and dims == [2, 3], "mean must be over height and width")
        keep = int(bool(arguments.get("keepdim")))
        self._emit("ReduceMean", [self._wire(_args(node)[0])], node, axes=[2, 3], keepdims=keep)

    def _concat(self, node: fx.Node) -> None:
        arguments = dict(zip(("tensors", "dim"), _args(node), strict=False)) | _kwargs(node)
        rank = len(wire_shape(node)) + 1
        axis = int(arguments.get("dim", 0)) % rank
        _require(node, axis != 0, "concatenation along the batch is not supported")
        self._emit("Concat", [self._wire(wire) for wire in arguments["tensors"]], node, axis=axis)

    def _pad(self, node: fx.Node) -> None:
        arguments = dict(zip(("input", "pad", "mode", "value"), _args(node), strict=False)) | _kwargs(node)
        zeros = arguments.get("mode", "constant") == "constant" and not arguments.get("value")
        _require(node, zeros, "padding must be with zeros")
        pads = list(arguments["pad"])
        rank = len(wire_shape(node)) + 1
        before, after = [0] * rank, [0] * rank
        for position in range(len(pads) // 2):  # torch counts from the last dimension
            before[rank - 1 - position], after[rank - 1 - position] = pads[2 * position], pads[2 * position + 1]
        _require(node, before[0] == after[0] == 0 and min(before + after) >= 0, "pads must be >= 0, not of the batch")
        constant = self._constant(f"{self._name(node)}.pads", np.array(before + after))
        self._emit("Pad", [self._wire(_args(node)[0]), constant], node)

    # Plumbing.

    def _emit(self, kind: str, inputs: list[str], node: fx.Node | str, **attrs: Any) -> str:
        """Appends an operation; its output is the wire of an fx node, or an inner wire of the given name."""
        name = node if isinstance(node, str) else self._name(node)
        wire = name if isinstance(node, str) else f"{name}.out"
        if isinstance(node, fx.Node):
            self.wires[node] = wire
        self.nodes.append(helper.make_node(kind, inputs, [wire], name=name, **attrs))
        return wire

    def _name(self, node: fx.Node) -> str:
        """The module's path, or the call's name; a module that is called again gets a number."""
        if node not in self.names:
            name = str(node.target) if node.op == "call_module" else node.name
            self.calls[name] += 1
            self.names[node] = name if self.calls[name] == 1 else f"{name}.call{self.calls[name]}"
        return self.names[node]

    def _wire(self, node: Any) -> str:
        if node not in self.wires:
            raise ExportError(f"{node}: not a wire of the network; only tensors computed from the input can be used")
        return self.wires[node]

    def _parameter(self, node: fx.Node, key: str, tensor: torch.Tensor) -> str:
        # Named after the module, not the call: a module that is called twice has its weights in the file once.
        return self._constant(f"{node.target}.{key}", tensor.detach().cpu().numpy().astype(np.float32))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _refuse(self, node: fx.Node, what: str) -> ExportError:
        return ExportError(
            f"{self._name(node)}: {what} is outside the operator set (convolution, linear, batch norm, ReLU, add,"
            " average, global and max pooling, flatten, concat, pad, slice); replace it before the export"
        )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _require(node: fx.Node, condition: bool, rule: str) -> None:
    if not condition:
        raise ExportError(f"{node.target if node.op == 'call_module' else node.name}: {rule}")


def _args(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a call; torch types them as a union that nothing can be done with."""
    return tuple(node.args)


def _kwargs(node: fx.Node) -> dict[str, Any]:
    return dict(node.kwargs)
