"""A network of the user's as a torch.fx graph that behaves the same in eval and in train mode.

torch.fx runs `forward` once with stand-ins for tensors and records each call. What Python decides during that run is
fixed in the graph, and `self.training` is such a thing: the network is traced in both modes, and where only a flag
differs (as in `F.dropout(x, training=self.training)`) a module that answers with its own mode takes the flag's place.
"""

import traceback
from collections.abc import Iterator
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from linearize.errors import NetworkError
from linearize.relu_mask import MaskedReLU

_ADVICE = "its forward may branch on shapes known beforehand and on settings, never on the values or sizes of its input"
_LIBRARY = str(Path(torch.__file__).parent)
_FLAG = "_training_flag"


class TrainingFlag(nn.Module):
    """Answers with its mode, as a bool: `self.training` of the traced network."""

    def forward(self) -> bool:
        """True in train mode."""
        return self.training


class _Tracer(fx.Tracer):
    """Keeps masked ReLUs whole, beside what torch.fx keeps whole (the layers of torch.nn)."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MaskedReLU) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """A traced copy of a network, on the CPU and in eval mode; the network itself is not touched.

    Weights are copied; a tensor or a module that the network uses in several places is one in the copy as well.
    Arguments of `forward` after the first keep their defaults. Modules and weights that `forward` does not use are
    left out. Raises NetworkError where the network cannot be traced, naming the line, or does something else in train
    mode than in eval mode.
    """
    name = type(model).__name__
    root = deepcopy(model).cpu()
    _take_images_only(root)
    # A copy for each: tracing leaves constants behind in the module.
    evaluating, training = _graph(root.eval(), name), _graph(deepcopy(root).train(), name)
    _follow_the_mode(root, evaluating, training, name)
    return fx.GraphModule(root, evaluating, class_name=name).eval()


def _take_images_only(root: nn.Module) -> None:
    """Give the copy a `forward` of one argument: fx would make stand-ins of the optional ones too."""
    kind: Any = type(root)

    class ImagesOnly(kind):  # type: ignore[misc]
        def forward(self, images: Any) -> Any:
            return super().forward(images)

    root.__class__ = ImagesOnly


def _graph(root: nn.Module, name: str) -> fx.Graph:
    try:
        return _Tracer().trace(root)
    except Exception as error:  # whatever the user's forward raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NetworkError(f"{name} cannot be traced{_place(error)}: {reason}; {_ADVICE}") from error


def _place(error: Exception) -> str:
    """Where in the user's program: the innermost line outside PyTorch and this file."""
    own = (_LIBRARY, __file__, "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f" at {frames[-1].filename}, line {frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""


def _follow_the_mode(root: nn.Module, evaluating: fx.Graph, training: fx.Graph, name: str) -> None:
    """Put a TrainingFlag, registered in root, into the first graph wherever the two differ in a flag."""
    pairs = list(zip_longest(evaluating.nodes, training.nodes))
    root.add_module(_FLAG, TrainingFlag())
    with evaluating.inserting_before(next(node for node in evaluating.nodes if node.op != "placeholder")):
        flag = evaluating.call_module(_FLAG)
    for node, other in pairs:
        if node is None or other is None or (node.op, node.target) != (other.op, other.target):
            raise _differs(name, node or other)
        theirs = _leaves(other)

        def merged(leaf: Any, node: fx.Node = node, theirs: Iterator[Any] = theirs) -> Any:
            counterpart = next(theirs, None)
            if leaf is False and counterpart is True:
                return flag
            if str(leaf) != str(counterpart):
                raise _differs(name, node)
            return leaf

        node.args, node.kwargs = map_aggregate(node.args, merged), map_aggregate(node.kwargs, merged)
    if not flag.users:
        evaluating.erase_node(flag)


def _leaves(node: fx.Node) -> Iterator[Any]:
    """Every argument of a call that is not a container, in the order in which map_aggregate meets them."""
    found: list[Any] = []
    map_aggregate((node.args, node.kwargs), found.append)
    return iter(found)


def _differs(name: str, node: fx.Node | None) -> NetworkError:
    return NetworkError(
        f"{name} does something else in train mode than in eval mode, from {node} on; make its forward the same in "
        "both but for flags that are true in train mode (torchvision: aux_logits=False)"
    )
