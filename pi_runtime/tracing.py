"""A torch module as a flat list of operations with known shapes: torch.fx, with BatchNorm folded.

Masked ReLUs are found by their form, so that this package depends on nobody's training code: a module that has a tensor
``relu_mask``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from pi_runtime.errors import ExportError

TRACE_BATCH = 2  # any size that a wrongly fixed batch of 1 would not pass for


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """Traces a float32 copy of ``model`` in evaluation mode, folds its BatchNorms and notes the shape of each wire.

    Args:
        model: a classifier from float32 [B, C, H, W] to logits [B, classes]; not changed.
        input_shape: (C, H, W).

    Raises:
        ExportError: the module cannot be traced or does not run on such images.
    """
    copy = deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    try:
        traced = fx.GraphModule(copy, _Tracer().trace(copy))
    except Exception as error:  # whatever the user's forward raises
        raise ExportError(
            f"{type(model).__name__} cannot be traced ({error}); its forward must not branch on values of its input"
        ) from error
    _fold_batch_norm(traced)
    try:
        with torch.no_grad():
            ShapeProp(traced).propagate(torch.zeros(TRACE_BATCH, *input_shape))
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} does not run on images of shape {tuple(input_shape)}: {error}"
        ) from error
    return traced


def relu_mask_of(module: nn.Module) -> torch.Tensor | None:
    """The mask of a masked ReLU, shaped like its activation without the batch; None for any other module."""
    mask = getattr(module, "relu_mask", None)
    return mask if isinstance(mask, torch.Tensor) else None


def wire_shape(node: Any) -> tuple[int, ...]:
    """The shape of the wire that ``node`` writes, without the batch.

    Raises:
        ExportError: it is no tensor, or its first dimension is not the batch.
    """
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    if meta is None or not hasattr(meta, "shape"):
        raise ExportError(f"{node}: not a tensor; only tensors can be passed between layers")
    shape = tuple(int(size) for size in meta.shape)
    if not shape or shape[0] != TRACE_BATCH:
        raise ExportError(f"{node}: its first dimension is no longer the batch (shape {shape})")
    return shape[1:]


class _Tracer(fx.Tracer):
    """Keeps masked ReLUs whole, whoever defined them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return relu_mask_of(m) is not None or super().is_leaf_module(m, module_qualified_name)


_FOLDS: dict[type[nn.Module], Callable[[Any, Any], nn.Module]] = {
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Linear: fuse_linear_bn_eval,
}


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm into the convolution or linear layer that alone feeds it and feeds it alone."""
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d | nn.BatchNorm1d):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1 or calls[source.target] + calls[node.target] != 2:
            continue
        fold = _FOLDS.get(type(modules[source.target]))
        if fold is None:
            continue
        modules[source.target] = fold(modules[source.target], modules[node.target])
        traced.set_submodule(source.target, modules[source.target])
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.recompile()
