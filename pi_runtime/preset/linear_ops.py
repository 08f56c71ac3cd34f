"""Secret linear layers over Z_2^64: integer weights, and their product with a share.

Two roads, both exact mod 2^64: weights that are uniform 64-bit words (the halves A and D of the offline phase) go
through torch's int64 convolution; the server's own, small weights through the packed kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from pi_runtime.errors import GraphError
from pi_runtime.preset.program import Program, Step
from pi_runtime.ring import I64, encode


def quantise(program: Program) -> dict[str, tuple[I64, I64]]:
    """Integer weights and biases of each linear step: round(w * 2**f_w) and round(b * 2**(f_x + f_w)).

    A dense weight is int64 [O, I], a convolution's [O, C/groups, kh, kw], an affine's [C].

    Raises:
        GraphError: the program is of a public graph, or a weight is out of range at its scale.
    """
    quantised = {}
    for step in program.linear_steps:
        if not step.node.params:
            raise GraphError(f"{step.name} has no weights: the server needs the ONNX file, not the public graph")
        bits = program.frac_bits[step.node.inputs[0]] + step.weight_frac_bits
        weight = encode(step.node.params["weight"], step.weight_frac_bits)
        quantised[step.name] = weight, encode(step.node.params["bias"], bits)
    return quantised


def weight_shape(step: Step) -> tuple[int, ...]:
    """The shape of a linear step's weight."""
    return step.node.param_shapes["weight"]


def broadcast_bias(step: Step, bias: I64) -> I64:
    """The bias [O] in the shape of the step's output, to be added to [B, ...]."""
    return bias.reshape(-1, *(1,) * (len(step.node.shape) - 1))


def multiply(step: Step, weight: I64, share: I64) -> I64:
    """``weight * share`` mod 2^64 for any 64-bit weights: int64 [B, ...] to int64 [B, ...]."""
    node = step.node
    if node.op == "affine":
        return broadcast_bias(step, weight) * share
    if node.op == "linear":
        return share @ weight.T
    top, left, bottom, right = node.ints("pads")
    image = torch.from_numpy(np.require(share, requirements=["C", "W"]))
    if (top, left) != (bottom, right):
        image = F.pad(image, (left, right, top, bottom))
        top = left = 0
    product = F.conv2d(
        image,
        torch.from_numpy(np.require(weight, requirements=["C", "W"])),
        stride=node.ints("strides"),
        padding=(top, left),
        dilation=node.ints("dilations"),
        groups=node.int("groups"),
    )
    result: I64 = product.numpy()
    return result


Weights = Mapping[str, tuple[I64, I64]]
