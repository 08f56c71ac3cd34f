"""The exported graph as a ``crypten.nn.Graph``: what our `crypten` backend runs and what a CrypTen user loads.

Each node becomes one module named after the wire that it writes. Modules work on plain tensors before ``encrypt`` and
on shared ones after, for any batch size B. A ReLU layer gathers its kept elements, compares only these, and scatters
them back, so that its cost is in proportion to their number; one that kept none is no protocol at all.

How a CrypTen user loads ``model.crypten.pt`` (a pickle: load only files that you made), with this package installed::

    from pi_runtime.crypten.library import import_crypten

    crypten = import_crypten()  # `import crypten` alone fails on torch >= 2.9
    crypten.init()
    model = torch.load("model.crypten.pt", weights_only=False)
    model.encrypt(src=0)  # party 0 owns the weights
    with crypten.no_grad():
        logits = model(crypten.cryptensor(images, src=1))  # images: torch.float32 [B, C, H, W]

A party that must not see the weights does not get that file: it builds the same modules, parameters zero, with
``build_crypten_graph(load_public(Path("model.public.json")))`` and calls ``encrypt`` with the same ``src``.

Fixed point: CrypTen's encoder cuts towards zero at 2**-16. Parameters are rounded to the nearest multiple first, which
halves the largest error and removes the bias. After every product two parties truncate their shares locally: the
result is off by at most one unit of 2**-16, except with a chance of about |x| * 2**32 / 2**63 an element of magnitude
|x|, in which case it is far off (SecureML, eprint 2017/396, theorem 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from math import prod
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi_runtime.crypten.library import import_crypten
from pi_runtime.files import replacing
from pi_runtime.graph import Graph, Node

crypten = import_crypten()

from crypten.nn import Module  # noqa: E402 (after the import that makes it work)

FRAC_BITS = 16
"""Fraction bits of CrypTen's default encoder."""

# Below any activation, and small enough that a difference of two such values stays far inside the ring.
_LOWEST = -(2**24)


def round_to_encoder(values: Tensor) -> Tensor:
    """The float32 tensor that CrypTen's encoder takes without error: ``values`` at the nearest multiple of 2**-16."""
    return torch.round(values.double() * 2**FRAC_BITS).div(2**FRAC_BITS).float()


class _Module(Module):  # type: ignore[misc]
    """CrypTen's base class, which has no types."""


class _Identity(_Module):
    """A ReLU layer that kept nothing."""

    def forward(self, x: Any) -> Any:
        return x


class _Parametric(_Module):
    def __init__(self, node: Node) -> None:
        super().__init__()
        # Sorted: both parties must share them in one order, and a graph read from JSON has lost that of its file.
        for name, shape in sorted(node.param_shapes.items()):
            value = torch.tensor(node.params[name]) if node.params else torch.zeros(shape)
            self.register_parameter(name, round_to_encoder(value))


class _Conv(_Parametric):
    """[B, C, H, W] -> [B, O, H', W']: one opening of the masked input and weight, one truncation."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        top, left, bottom, right = node.ints("pads")
        self.symmetric = (top, left) == (bottom, right)
        self.margins = (left, right, top, bottom)
        self.options: dict[str, Any] = {
            "stride": node.ints("strides"),
            "padding": (top, left) if self.symmetric else (0, 0),
            "dilation": node.ints("dilations"),
            "groups": node.int("groups"),
        }

    def forward(self, x: Any) -> Any:
        x = x if self.symmetric else _pad(x, self.margins)
        bias = self.bias.unsqueeze(-1).unsqueeze(-1)
        if isinstance(x, Tensor):
            return torch.conv2d(x, self.weight, **self.options).add(bias)
        return x.conv2d(self.weight, **self.options).add(bias)


class _Linear(_Parametric):
    """[B, I] -> [B, O]."""

    def forward(self, x: Any) -> Any:
        return x.matmul(self.weight.t()).add(self.bias)


class _Affine(_Parametric):
    """[B, C, ...] -> the same shape: a private slope and offset a channel."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.trailing = len(node.shape) - 1

    def forward(self, x: Any) -> Any:
        weight, bias = self.weight, self.bias
        for _ in range(self.trailing):
            weight, bias = weight.unsqueeze(-1), bias.unsqueeze(-1)
        return x.mul(weight).add(bias)


class _Add(_Module):
    """Sum of wires; ``order`` says which input each operand is, as one wire may be added to itself."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, wires: Any) -> Any:
        return reduce(add, _operands(wires, self.order))


class _Concat(_Module):
    def __init__(self, order: Sequence[int], axis: int) -> None:
        super().__init__()
        self.order = tuple(order)
        self.axis = axis + 1

    def forward(self, wires: Any) -> Any:
        return _cat(_operands(wires, self.order), self.axis)


class _KeptReLU(_Module):
    """ReLU of the kept elements; the others pass as they are.

    kept: int64 [K], flat indices of one image; all of them make it a plain ReLU.
    """

    def __init__(self, kept: Tensor, size: int) -> None:
        super().__init__()
        # A plain attribute: CrypTen encrypts every tensor that is registered as a buffer, and this one is public.
        self.kept = None if len(kept) == size else kept

    def forward(self, x: Any) -> Any:
        if self.kept is None:
            return x.relu()
        flat = x.flatten(start_dim=1)
        result = flat.clone()
        result[:, self.kept] = flat.index_select(1, self.kept).relu()
        return result.reshape(x.size())


class _AvgPool(_Module):
    """Local: a sum of shares and a truncating division by the public number of elements."""

    def __init__(self, node: Node, source: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.strides = node.ints("kernel"), node.ints("strides")
        top, left, bottom, right = node.ints("pads")
        self.margins = (left, right, top, bottom)
        height, width = source[-2:]
        counted = torch.ones(1, 1, height, width, dtype=torch.int64)
        if any(self.margins):
            counted = torch.nn.functional.pad(counted, self.margins, value=node.int("count_include_pad"))
        self.divisor = sum(_windows(counted, self.kernel, self.strides, node.shape))
        self.shape = node.shape

    def forward(self, x: Any) -> Any:
        x = _pad(x, self.margins) if any(self.margins) else x
        return reduce(add, _windows(x, self.kernel, self.strides, self.shape)).div(self.divisor)


class _MaxPool(_Module):
    """Maximum of k*k elements by a tree of ``max(a, b) = b + relu(a - b)``: k*k - 1 ReLUs an output, log2 levels."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.kernel, self.strides, self.shape = node.ints("kernel"), node.ints("strides"), node.shape
        top, left, bottom, right = node.ints("pads")
        self.margins = (left, right, top, bottom)

    def forward(self, x: Any) -> Any:
        x = _pad(x, self.margins, _LOWEST) if any(self.margins) else x
        candidates = list(_windows(x, self.kernel, self.strides, self.shape))
        batch = x.size()[0]
        while len(candidates) > 1:
            odd = candidates[2 * (len(candidates) // 2) :]
            left, right = _cat(candidates[0:-1:2], 0), _cat(candidates[1::2], 0)
            winners = right + (left - right).relu()
            candidates = [winners[start : start + batch] for start in range(0, winners.size()[0], batch)] + odd
        return candidates[0]


class _Reshape(_Module):
    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Any) -> Any:
        return x.reshape((x.size()[0], *self.shape))


class _Pad(_Module):
    def __init__(self, node: Node) -> None:
        super().__init__()
        pairs = zip(reversed(node.ints("pads_before")), reversed(node.ints("pads_after")), strict=True)
        self.margins = tuple(margin for pair in pairs for margin in pair)

    def forward(self, x: Any) -> Any:
        return _pad(x, self.margins)


class _Slice(_Module):
    def __init__(self, node: Node) -> None:
        super().__init__()
        ranges = zip(node.ints("starts"), node.ints("stops"), node.ints("steps"), strict=True)
        self.index = (slice(None), *(slice(*bounds) for bounds in ranges))

    def forward(self, x: Any) -> Any:
        return x[self.index]


def build_crypten_graph(graph: Graph) -> Any:
    """Builds the ``crypten.nn.Graph`` of ``graph``, in evaluation mode and not yet encrypted.

    Parameters are those of ``graph``, rounded to multiples of 2**-16, or zeros where it is public.
    """
    model = crypten.nn.Graph([graph.input], [graph.output])
    for node in graph.nodes:
        # CrypTen's scheduler cannot name one wire twice as input of a module.
        wires = list(dict.fromkeys(node.inputs))
        order = [wires.index(wire) for wire in node.inputs]
        model.add_module(node.output, _module(node, order, graph.shapes[node.inputs[0]]), wires)
    return model.eval()


def run_node(model: Any, node: Node, wires: Mapping[str, Any]) -> Any:
    """The output of one node of ``model``, as its ``forward`` would compute it from the values of ``wires``."""
    inputs = [wires[wire] for wire in dict.fromkeys(node.inputs)]
    return model._modules[node.output](inputs[0] if len(inputs) == 1 else inputs)


def save_crypten_graph(graph: Graph, path: Path) -> None:
    """Writes ``model.crypten.pt``: the ``crypten.nn.Graph`` with its plain parameters, see the module's docstring.

    This package itself never loads that file: it unpickles nothing.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    with replacing(path) as temporary:
        torch.save(build_crypten_graph(graph), temporary)


def _module(node: Node, order: Sequence[int], source: Sequence[int]) -> Any:
    match node.op:
        case "conv":
            return _Conv(node)
        case "linear":
            return _Linear(node)
        case "affine":
            return _Affine(node)
        case "add":
            return _Add(order)
        case "concat":
            return _Concat(order, node.int("axis"))
        case "relu":
            assert node.kept is not None, "check_wiring gives every relu its kept elements"
            return _KeptReLU(torch.tensor(node.kept), prod(node.shape)) if node.relu_count else _Identity()
        case "avg_pool":
            return _AvgPool(node, source)
        case "max_pool":
            return _MaxPool(node)
        case "reshape":
            return _Reshape(node.shape)
        case "pad":
            return _Pad(node)
        case "slice":
            return _Slice(node)
    raise AssertionError(f"check_wiring lets no operator {node.op} through")


def _operands(wires: Any, order: Sequence[int]) -> list[Any]:
    """CrypTen hands a module one value as it is, several as a list."""
    distinct = wires if isinstance(wires, list) else [wires]
    return [distinct[position] for position in order]


def _windows(x: Any, kernel: Sequence[int], strides: Sequence[int], shape: Sequence[int]) -> Iterator[Any]:
    """For each place of a pooling window, the elements that stand there: tensors [B, C, H', W']."""
    rows, columns = ((size - 1) * step + 1 for size, step in zip(shape[-2:], strides, strict=True))
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            yield x[:, :, top : top + rows : strides[0], left : left + columns : strides[1]]


def _pad(x: Any, margins: Sequence[int], value: int = 0) -> Any:
    """Pads the last dimensions; ``margins`` as in ``torch.nn.functional.pad``."""
    if isinstance(x, Tensor):
        return torch.nn.functional.pad(x, tuple(margins), value=value)
    return x.pad(tuple(margins), value=value)


def _cat(parts: Sequence[Any], dim: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts), dim) if isinstance(parts[0], Tensor) else crypten.cat(list(parts), dim=dim)
