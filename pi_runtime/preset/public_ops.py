"""Public operations on shares: the same for both parties, exact mod 2^64. Legend: B images, then the wire's shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pi_runtime.preset.lowering import EDGE
from pi_runtime.preset.program import Step
from pi_runtime.primitives.ring import I64


def apply_public(step: Step, inputs: Sequence[I64], *, constants: bool) -> I64:
    """The output share of a public step.

    Args:
        inputs: int64 [B, ...] of each input wire.
        constants: whether this share takes the public constants (paddings, and the rounding of a truncation: the two
            floors of a shift lose one unit together on average, 2**shift - 1 put into one share before takes it back);
            the server's does.
    """
    aligned = [share << np.int64(bits) if bits else share for share, bits in zip(inputs, step.left_shifts, strict=True)]
    first = aligned[0]
    node = step.node
    batch = len(first)
    match node.op:
        case "add":
            return first + aligned[1]
        case "sub":
            return first - aligned[1]
        case "relu":  # one that kept nothing
            return first
        case "reshape":
            return first.reshape(batch, *node.shape)
        case "concat":
            return np.concatenate(aligned, axis=node.int("axis") + 1)
        case "pad":
            widths = [(0, 0), *zip(node.ints("pads_before"), node.ints("pads_after"), strict=True)]
            fill = step.edge if constants and EDGE in node.attrs else 0
            return np.pad(first, widths, constant_values=fill)
        case "slice":
            bounds = zip(node.ints("starts"), node.ints("stops"), node.ints("steps"), strict=True)
            return first[(slice(None), *(slice(*bound) for bound in bounds))]
        case "avg_pool":
            return truncate(_window_sums(step, first), step.shift, constants=constants)
        case _:
            raise AssertionError(f"{node.op} is no public operation")


def truncate(share: I64, shift: int, *, constants: bool) -> I64:
    """An arithmetic right shift of one share; see :func:`apply_public` for ``constants``."""
    if not shift:
        return share
    rounding = np.int64((1 << shift) - 1 if constants else 0)
    return (share + rounding) >> np.int64(shift)


def _window_sums(step: Step, share: I64) -> I64:
    node = step.node
    kernel, strides, pads = node.ints("kernel"), node.ints("strides"), node.ints("pads")
    if any(pads):
        share = np.pad(share, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(share, kernel, axis=(2, 3))
    sums: I64 = windows[:, :, :: strides[0], :: strides[1]].sum((4, 5), dtype=np.int64)
    return sums if step.multiplier is None else sums * step.multiplier
