"""Masks for the ReLUs of any network: each *call* of a ReLU becomes a MaskedReLU of its own.

`nn.ReLU` modules and the functions `F.relu`, `torch.relu`, `x.relu()` with their in-place forms are found in the traced
graph, so that a module that is called twice (torchvision's ResNet calls one ReLU twice a block) and a ReLU inside a
module that is called twice get a mask a call. All else of the network stays: pooling, other activations, weights.

Legend: B batch, C channels, H and W rows and columns, F features of a dense layer.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from linearize.errors import NetworkError
from linearize.fx_trace import trace
from linearize.relu_mask import MaskedReLU, masked_layers
from linearize.rng import generator

_RELU_CALLS = {F.relu, torch.relu, "relu"}
_IN_PLACE_CALLS = {torch.relu_, "relu_"}  # F.relu_ is torch.relu_
_RELU6_CALLS = {F.relu6}
# Layers of torch.nn that compute ReLUs where a graph does not show them.
_HIDING = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)
_BATCHES = (2, 3)  # two sizes, so that a size of the network is not taken for the batch


def mask_relus(model: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """A copy of a network in which every call of a ReLU is a MaskedReLU that keeps all of its ReLUs.

    The copy computes what the network computes, bit for bit on the CPU (checked on random inputs in eval mode). It is a
    torch.fx module on the CPU in eval mode, with weights of its own under the network's names; `model` is not touched.
    A mask is named after the path of its ReLU module, or `relu` under the module that calls the function; of several
    calls under one name each has its number (`layer1.0.relu_call1`, `layer1.0.relu_call2`). MaskedReLUs that the
    network has already keep their masks.

    model: float32 [B, *input_shape] -> logits [B, K]. input_shape: (C, H, W) of an image, or (F,).
    Raises NetworkError: it cannot be traced (see `linearize.fx_trace`), does not run on such inputs, has no ReLU, or
    has one that cannot be masked (named).
    """
    traced = trace(model)
    masked = _mask_calls(traced)
    _allocate(masked, tuple(input_shape))
    _compare(model, masked, tuple(input_shape))
    return masked


def _mask_calls(traced: fx.GraphModule) -> fx.GraphModule:
    """The graph with a MaskedReLU, not yet allocated, for every call of a ReLU; layers in the order of their use."""
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    for node in nodes:
        _refuse_hidden(node, modules)
    paths = {node: _path(node) for node in nodes if _is_relu(node, modules)}
    if not paths:
        raise NetworkError(
            f"{_title(traced)} has no ReLU (nn.ReLU, F.relu, torch.relu, x.relu()), so there is nothing to linearize"
        )
    taken = {str(node.target) for node in nodes if node.op in ("call_module", "get_attr") and node not in paths}
    position = {node: number for number, node in enumerate(nodes)}
    totals, numbers = Counter(paths.values()), Counter[str]()
    for node, path in paths.items():
        numbers[path] += 1
        name = path if totals[path] == 1 else f"{path}_call{numbers[path]}"
        while any(other == name or other.startswith(f"{name}.") for other in taken):
            name += "_"
        taken.add(name)
        source = node.args[0] if node.args else node.kwargs["input"]
        assert isinstance(source, fx.Node), "a ReLU of a constant is none of the graph"
        before = modules.get(str(node.target))
        traced.add_submodule(name, deepcopy(before) if isinstance(before, MaskedReLU) else MaskedReLU())
        with traced.graph.inserting_after(node):
            call = traced.graph.call_module(name, (source,))
        position[call] = position[node]
        node.replace_all_uses_with(call)
        if _is_in_place(node, before):
            # Later readers of the overwritten tensor read the result.
            source.replace_all_uses_with(call, partial(_is_later, position, position[node]))
        traced.graph.erase_node(node)
    return fx.GraphModule(traced, traced.graph, class_name=_title(traced))


def _is_later(position: Mapping[fx.Node, int], than: int, user: fx.Node) -> bool:
    return position[user] > than


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | MaskedReLU)
    return node.op in ("call_function", "call_method") and node.target in _RELU_CALLS | _IN_PLACE_CALLS


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return isinstance(module, nn.ReLU) and module.inplace
    flag = node.args[1] if len(node.args) > 1 else node.kwargs.get("inplace", False)
    return node.target in _IN_PLACE_CALLS or bool(flag)


def _refuse_hidden(node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Raise NetworkError for a ReLU that a mask cannot stand for."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.ReLU6) or node.target in _RELU6_CALLS:
        raise NetworkError(
            f"{_path(node)} is a ReLU6, which has two bends; put an nn.ReLU in its place and train again"
        )
    if isinstance(module, _HIDING):
        raise NetworkError(f"{_path(node)}: {type(module).__name__} computes its ReLUs out of sight; write it out")


def _path(node: fx.Node) -> str:
    """The path of a called module; of a called function, `relu` (or its name) under the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    parent = stack[-1][0] if stack else ""
    return f"{parent}.{name.rstrip('_')}".removeprefix(".")


def _title(traced: fx.GraphModule) -> str:
    return type(traced).__name__


def _allocate(masked: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Give each mask the shape that dry runs show, without the batch; masks of the network's own stay."""
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    layers = masked_layers(masked)

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name].append(tuple(inputs[0].shape))

    own = {name: layer.relu_mask for name, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    for layer in layers.values():
        layer.relu_mask = None
    for batch in _BATCHES:
        logits = _run(masked, torch.zeros(batch, *input_shape))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
            what = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise NetworkError(f"{_title(masked)} must return logits [B, classes], got {what} for {batch} inputs")
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        shapes = seen[name]
        if any(shape[:1] != (batch,) for shape, batch in zip(shapes, _BATCHES, strict=True)):
            raise NetworkError(
                f"{name} sees {' and '.join(map(str, shapes))} for batches of {_BATCHES[0]} and {_BATCHES[1]}: its "
                "first dimension must be the batch; keep the batch first up to this ReLU"
            )
        if own[name] is None:
            layer.allocate(shapes[0][1:])
        else:
            layer.relu_mask = own[name]


def _run(model: nn.Module, inputs: Tensor) -> Any:
    """A pass in eval mode with a random stream of its own, for networks that draw in eval mode too."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model.eval()(inputs)
    except Exception as error:  # whatever the user's forward raises
        reason = " ".join(str(error).split())[:300]
        raise NetworkError(
            f"{type(model).__name__} does not run on float32 inputs of shape {tuple(inputs.shape[1:])} ({reason}); "
            "give it the shape that it was made for"
        ) from error


def _compare(model: nn.Module, masked: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Raise NetworkError unless both compute the same, bit for bit, on random inputs."""
    inputs = torch.randn(_BATCHES[0], *input_shape, generator=generator(0, "compare"))
    expected, found = _run(deepcopy(model).cpu(), inputs.clone()), _run(masked, inputs)
    if not torch.equal(expected, found):
        raise NetworkError(
            f"{_title(masked)} computes something else when it is traced: it changes a tensor in place while another "
            "name or a view of it is in use, or keeps state between calls; write that part without in-place operations"
        )
