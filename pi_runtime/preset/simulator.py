"""What the secure network computes, in plain: the same integers as a secure run over the same pads, bit for bit.

The noise of a truncation is a function of the client's share, so the simulator walks that share along. Values beyond a
gate's ring wrap as they do in the protocol, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pi_runtime.graph import Shape
from pi_runtime.preset.linear_ops import Weight, broadcast_bias, multiply
from pi_runtime.preset.program import Program, Step
from pi_runtime.preset.public_ops import apply_public, truncate
from pi_runtime.preset.shares import Pads, kept_elements, replace_kept, walk_client_shares
from pi_runtime.primitives.ring import I64, decode, encode, signed_low_bits


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """logits: float64 [B, classes]. wrapped: by gate layer, kept elements that were outside the gate's ring."""

    logits: npt.NDArray[np.float64]
    wrapped: dict[str, int] = field(default_factory=dict)


class RandomPads:
    """Pads for a simulation that no secret hangs on: uniform, from numpy's generator."""

    def __init__(self, batch: int, rng: np.random.Generator) -> None:
        self._batch = batch
        self._rng = rng

    @property
    def batch(self) -> int:
        return self._batch

    def input(self, shape: Shape) -> I64:
        return self._words(shape)

    def linear(self, step: Step) -> I64:
        return self._words(step.node.shape)

    def gate(self, step: Step) -> I64:
        return self._words((step.gate_count,))

    def _words(self, shape: Shape) -> I64:
        return self._rng.integers(-(2**63), 2**63, (self._batch, *shape), dtype=np.int64)


def simulate(
    program: Program,
    weights: Mapping[str, tuple[Weight, I64]],
    images: npt.NDArray[np.floating],
    pads: Pads,
    observe: Callable[[Step, I64], None] | None = None,
) -> Simulated:
    """Runs ``images`` [B, C, H, W] (normalised) through the integer network with the given pads.

    Args:
        weights: of :func:`pi_runtime.preset.linear_ops.quantise`, packed for speed or as they are; and biases.
        observe: told, for each step that truncates (a linear layer, a pool), its V before the shift, and for each gate
            step the kept elements of its input; also V of a linear step that does not shift.

    Raises:
        LocalProtocolError: an image that fixed point cannot hold.
    """
    values: dict[str, I64] = {program.input: encode(images, program.plan.frac_bits)}
    wrapped: dict[str, int] = {}
    for walk in walk_client_shares(program, pads):
        step = walk.step
        inputs = [values[wire] for wire in step.node.inputs]
        if step.kind == "linear":
            assert walk.pad is not None
            weight, bias = weights[step.name]
            product = multiply(step, weight, inputs[0]) + broadcast_bias(step, bias)
            if observe is not None:
                observe(step, product)
            out = truncate(product - walk.pad, step.shift, constants=True) + walk.share_out
        elif step.kind == "gate":
            kept = kept_elements(step, inputs[0])
            if observe is not None:
                observe(step, kept)
            read = signed_low_bits(kept, step.ring_bits)
            wrapped[step.name] = int(np.count_nonzero(read != kept))
            out = replace_kept(step, inputs[0], np.maximum(read, 0))
        else:
            if observe is not None and step.shift:
                observe(step, apply_public(replace(step, shift=0), inputs, constants=False))
            server = [value - share for value, share in zip(inputs, walk.shares_in, strict=True)]
            out = apply_public(step, server, constants=True) + walk.share_out
        values[step.node.output] = out
        for wire in set(step.node.inputs):
            if program.last_use[wire] == step.index:
                del values[wire]
    logits = signed_low_bits(values[program.output].reshape(len(images), -1), program.plan.logit_ring_bits)
    return Simulated(logits=decode(logits, program.output_frac_bits), wrapped=wrapped)
