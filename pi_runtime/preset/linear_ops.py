"""Secret linear layers over Z_2^64: integer weights, and their product with a share.

Two roads, both exact mod 2^64: the packed kernels of :mod:`pi_runtime.primitives.ring_conv`, which want the weights
laid out once, and numpy and torch for what those do not take and for weights that are used once. Full 64-bit weights
(the halves A and D of the offline phase) are three to eight times faster through the kernels as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pi_runtime.errors import GraphError
from pi_runtime.preset.program import Program, Step
from pi_runtime.primitives.ring import I64, encode
from pi_runtime.primitives.ring_conv import PackedConv, conv2d_ring, linear_ring, pack_linear, pack_weights

Weight = I64 | PackedConv
"""The weight of one linear step as integers, or laid out by :func:`pack`."""


def quantise(program: Program) -> dict[str, tuple[I64, I64]]:
    """Integer weights and biases of each linear step: round(w * 2**f_w) and round(b * 2**(f_x + f_w)).

    A weight is rounded such that its last ``zero_bits`` bits are zero.

    A dense weight is int64 [O, I], a convolution's [O, C/groups, kh, kw], an affine's [C].

    Raises:
        GraphError: the program is of a public graph, or a weight is out of range at its scale.
    """
    quantised = {}
    for step in program.linear_steps:
        if not step.node.params:
            raise GraphError(f"{step.name} has no weights: the server needs the ONNX file, not the public graph")
        bits = program.frac_bits[step.node.inputs[0]] + step.weight_frac_bits
        weight = encode(step.node.params["weight"], step.weight_frac_bits - step.zero_bits) << np.int64(step.zero_bits)
        quantised[step.name] = weight, encode(step.node.params["bias"], bits)
    return quantised


def weight_shape(step: Step) -> tuple[int, ...]:
    """The shape of a linear step's weight."""
    return step.node.param_shapes["weight"]


def broadcast_bias(step: Step, bias: I64) -> I64:
    """The bias [O] in the shape of the step's output, to be added to [B, ...]."""
    return bias.reshape(-1, *(1,) * (len(step.node.shape) - 1))


def pack(step: Step, weight: I64) -> Weight:
    """``weight`` laid out for the kernels, once for many products; itself where they do not take the layer."""
    node = step.node
    if node.op == "linear":
        return pack_linear(weight)
    if node.op == "conv" and node.ints("dilations") == (1, 1):
        high, wide = node.ints("strides")
        top, left, bottom, right = node.ints("pads")
        return pack_weights(weight, (high, wide), (top, left, bottom, right), node.int("groups"))
    return weight


def multiply(step: Step, weight: Weight, share: I64, threads: int = 1) -> I64:
    """``weight * share`` mod 2^64 for any 64-bit weights: int64 [B, ...] to a fresh int64 [B, ...].

    threads: of the packed kernels.
    """
    node = step.node
    if isinstance(weight, PackedConv):
        return (linear_ring if node.op == "linear" else conv2d_ring)(share, weight, threads)
    if node.op == "affine":
        return broadcast_bias(step, weight) * share
    if node.op == "linear":
        return share @ weight.T
    return _convolve(step, weight, share)


def _convolve(step: Step, weight: I64, share: I64) -> I64:
    import torch  # takes seconds to load, and the kernels seldom leave anything to it
    import torch.nn.functional as F

    node = step.node
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
