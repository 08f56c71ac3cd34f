"""How often the truncation of shares fails, predicted for an image.

*One truncation.* The server's share of V before a shift by s is M = V - p + 2**s - 1, the client's is p, and each
shifts its own (:func:`pi_runtime.preset.public_ops.truncate`). The result is right, V / 2**s rounded up or down, unless
M, over the integers with V and p read as signed, leaves [-2**63, 2**63); then it is off by 2**(64 - s). Write
W = V + 2**s - 1. As p runs through [-2**63, 2**63), M runs through the 2**64 integers from W - 2**63 + 1 to W + 2**63.
Of these W + 1 are too large if W >= 0, and -W - 1 too small if W < 0. So a uniform p fails with probability

    |W + 1| / 2**64  =  |V + 2**s| / 2**64    exactly.

*A pool's share* is derived: modulo 2**64 a sum, with integer factors, of independent pads, each uniform in a range
around zero. Such a sum is symmetric and unimodal (but for half a unit), and so its density f at the ends of the ring,
after reduction, is at most twice the uniform one: with B = 2**63, f(B) * B is at most the mass between 0 and B, and
f((2k+1) * B) * 2B at most that between (2k-1) * B and (2k+1) * B. A pool's elements are therefore counted twice. (A
factor 2**g that all pads share can add 2**g to the |V + 2**s| of one element, which is nothing beside its usual size.)

*What is seen.* The error is a multiple of 2**(64 - s) at a wire, where s adds up the shifts from that truncation on (at
a join the larger sum). A gate of n <= 64 - s bits does not see it and gives a fresh sharing, so a layer that kept every
element ends it; logits do not see it when they are read mod 2**(64 - s). Only truncations whose error can reach a gate
or the logits are counted, each element once: an upper estimate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pi_runtime.preset.program import Program, Step
from pi_runtime.primitives.ring import I64

RING = 2.0**64
POOL_FACTOR = 2
"""How much more often than a uniform share a derived one can wrap; see the module."""


def wrapping_pads(step: Step, values: I64) -> float:
    """How many of the 2**64 pads fail, summed over elements: of ``values``, the V before the step's shift.

    For a pool an upper bound (see the module), else exact but for the rounding of float64. values: int64, any shape.
    """
    count = float(np.abs(values.astype(np.float64) + 2.0**step.shift).sum())
    return count if step.kind == "linear" else POOL_FACTOR * count


def truncating_steps(program: Program) -> tuple[Step, ...]:
    """The steps that shift shares to the right: linear layers, and pools where their extra bits must go."""
    return tuple(step for step in program.steps if step.shift)


def failure_rate(program: Program, wrapping: Mapping[int, float]) -> float:
    """Expected truncations of one image whose failure can reach a gate or the logits.

    wrapping: by the index of each truncating step, :func:`wrapping_pads` of one image (a mean over images).
    """
    seen = (step.index for step in truncating_steps(program) if can_be_seen(program, step))
    return sum((wrapping[index] for index in seen), 0.0) / RING


def can_be_seen(program: Program, origin: Step) -> bool:
    """Whether a failed truncation of ``origin`` can change a gate or the logits (see the module)."""
    shifts = {origin.node.output: origin.shift}
    for step in program.steps[origin.index + 1 :]:
        reached = [shifts[wire] for wire in step.node.inputs if wire in shifts]
        if not reached:
            continue
        if step.kind == "gate":
            if step.ring_bits > 64 - max(reached):
                return True
            if step.gate_count == step.size:
                continue  # every element leaves as a fresh sharing
        shifts[step.node.output] = max(reached) + step.shift
    spread = shifts.get(program.output)
    return spread is not None and program.plan.logit_ring_bits > 64 - spread
