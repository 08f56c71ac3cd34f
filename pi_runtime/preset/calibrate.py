"""Chooses the numbers of a secure network from training images, and says how often a truncation will fail.

A truncation shifts each share by itself. When the shares wrap around the ring the result is off by 2**(64 - shift);
for a value V before the shift that has probability |V| / 2**64. Such an error is a multiple of 2**(64 - s) at a wire,
where s adds up the shifts from that truncation on. A gate of n <= 64 - s bits does not see it and gives a fresh
sharing, so a layer that kept every element ends it; logits do not see it when they are read mod 2**(64 - s). Only
truncations whose error can reach a gate or the logits are counted, each element once: an upper estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, log2

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import GraphError
from pi_runtime.graph import Graph
from pi_runtime.preset.linear_ops import pack, quantise
from pi_runtime.preset.plan import DEFAULT_FRAC_BITS, FixedPointPlan, with_plan
from pi_runtime.preset.program import LINEAR, Program, Step, compile_program
from pi_runtime.preset.simulator import RandomPads, simulate
from pi_runtime.primitives.ring import I64

MAX_FAILURE_RATE = 1e-4
"""Most failed truncations an image that a plan may predict."""

HEADROOM_BITS = 1
"""Spare bits of a gate's ring above the largest value seen: images to come may be twice as large."""

EDGE_INTEGER_BITS = 8
"""MaxPool pads with -2**8, which every activation has to exceed."""

MIN_RING_BITS, WIDE_RING_BITS = 8, 32
WEIGHT_INTEGER_BITS = 15  # weights fit int16 (without their zero bits), which the convolution kernels are fastest with
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A plan, and what it was chosen from.

    largest: by gate step, the largest kept input seen, as a real number. failure_rate: predicted failed truncations an
    image that can reach a gate or the logits.
    """

    plan: FixedPointPlan
    largest: dict[str, float]
    failure_rate: float
    images: int


def calibrate(
    graph: Graph, images: npt.NDArray[np.floating], *, frac_bits: int = DEFAULT_FRAC_BITS, seed: int = 0
) -> Calibration:
    """Chooses weight scales, and the ring of each gate layer, for activations of ``frac_bits`` fraction bits.

    Args:
        graph: with parameters.
        images: training images, normalised, [N, C, H, W].
        seed: of the simulation's truncation noise, on which no secret hangs.

    Raises:
        GraphError: no ring or scale serves, or the predicted failure rate is above ``MAX_FAILURE_RATE``.
    """
    plan = FixedPointPlan(
        frac_bits=frac_bits,
        weight_frac_bits=frac_bits,
        ring_bits=WIDE_RING_BITS,
        edge_bits=frac_bits + EDGE_INTEGER_BITS,
        layer_weight_frac_bits=_weight_scales(graph, frac_bits),
    )
    program = compile_program(with_plan(graph, plan))
    largest: dict[int, int] = {}
    total: dict[int, float] = {}

    def observe(step: Step, values: I64) -> None:
        size = np.abs(values.astype(np.float64))
        if step.kind == "gate":
            largest[step.index] = max(largest.get(step.index, 0), int(size.max(initial=0)))
        else:
            total[step.index] = total.get(step.index, 0.0) + float(size.sum())

    integers = quantise(program)
    weights = {step.name: (pack(step, integers[step.name][0]), integers[step.name][1]) for step in program.linear_steps}
    rng = np.random.default_rng(seed)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        simulate(program, weights, part, RandomPads(len(part), rng), observe)
    rings = {step.name: _ring_bits(program, step, largest[step.index]) for step in program.gate_steps}
    plan = replace(plan, ring_bits=max(rings.values(), default=WIDE_RING_BITS), gate_ring_bits=rings)
    chosen = compile_program(with_plan(graph, plan))
    rate = failure_rate(chosen, {index: value / len(images) for index, value in total.items()})
    if rate > MAX_FAILURE_RATE:
        raise GraphError(
            f"{frac_bits} fraction bits predict {rate:.1e} failed truncations an image, more than {MAX_FAILURE_RATE:g};"
            " choose fewer fraction bits"
        )
    real = {step.name: largest[step.index] / 2.0**step.frac_bits for step in program.gate_steps}
    return Calibration(plan=plan, largest=real, failure_rate=rate, images=len(images))


def failure_rate(program: Program, magnitude: dict[int, float]) -> float:
    """Expected truncations of one image whose failure can reach a gate or the logits.

    magnitude: by linear step, the sum over its elements of |V| before the shift, a mean over images.
    """
    rate = 0.0
    for step in program.linear_steps:
        if step.shift and _can_be_seen(program, step):
            rate += magnitude[step.index] / 2.0**64
    return rate


def _can_be_seen(program: Program, origin: Step) -> bool:
    """Whether a wrapped share of ``origin``'s output can change a gate or the logits (see the module)."""
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


def _weight_scales(graph: Graph, frac_bits: int) -> dict[str, int]:
    """Fraction bits of each layer's weights: ``frac_bits``, fewer where a weight would not fit 16 bits."""
    scales = {}
    for node in graph.nodes:
        if node.op in LINEAR:
            largest = float(np.abs(node.params["weight"]).max(initial=0.0))
            room = WEIGHT_INTEGER_BITS - 1 - floor(log2(largest)) if largest > 0 else frac_bits
            if room < 0:
                raise GraphError(f"{node.name} has a weight of {largest:.3g}, too large for fixed point")
            scales[node.name] = min(frac_bits, room)
    return scales


def _ring_bits(program: Program, step: Step, largest: int) -> int:
    # One bit for the sign; `largest` needs bit_length() bits.
    bits = largest.bit_length() + 1 + HEADROOM_BITS
    if bits > WIDE_RING_BITS:
        raise GraphError(
            f"{step.name} sees values up to {largest / 2.0**step.frac_bits:.3g}, more than {WIDE_RING_BITS} bits hold"
            f" at {step.frac_bits} fraction bits; choose fewer"
        )
    return max(bits, MIN_RING_BITS)
