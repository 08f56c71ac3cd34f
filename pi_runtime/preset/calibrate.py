"""Chooses the numbers of a secure network from training images, and predicts how often a truncation will fail.

Legend: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, log2

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import ConfigError, GraphError
from pi_runtime.graph import Graph
from pi_runtime.preset.failure import failure_rate, wrapping_pads
from pi_runtime.preset.linear_ops import pack, quantise
from pi_runtime.preset.plan import DEFAULT_FRAC_BITS, INPUT_BITS, MAX_FAILURE_RATE, FixedPointPlan, with_plan
from pi_runtime.preset.program import LINEAR, Program, Step, compile_program
from pi_runtime.preset.simulator import RandomPads, simulate
from pi_runtime.primitives.ring import I64, encode

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


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What images showed of a program, as integers at its scales.

    largest: by the index of a gate step, the largest kept input in size. wrapping: by the index of a truncating step,
    how many pads of 2**64 fail, summed over the elements of an image, a mean over the images.
    """

    largest: dict[int, int]
    wrapping: dict[int, float]


def calibrate(
    graph: Graph, images: npt.NDArray[np.floating], *, frac_bits: int = DEFAULT_FRAC_BITS, seed: int = 0
) -> Calibration:
    """Chooses weight scales, and the ring of each gate layer, for activations of ``frac_bits`` fraction bits.

    Args:
        graph: with parameters.
        images: training images of every class, normalised, [N, C, H, W].
        seed: of the simulation's truncation noise, on which no secret hangs.

    Raises:
        ConfigError: no images.
        GraphError: no ring or scale serves, or the predicted failure rate is above ``MAX_FAILURE_RATE``.
    """
    if not len(images):
        raise ConfigError("calibration needs at least one image, got none; give training images")
    plan = FixedPointPlan(
        frac_bits=frac_bits,
        weight_frac_bits=frac_bits,
        ring_bits=WIDE_RING_BITS,
        edge_bits=frac_bits + EDGE_INTEGER_BITS,
        input_bits=_input_bits(images, frac_bits),
        layer_weight_frac_bits=_weight_scales(graph, frac_bits),
    )
    program = compile_program(with_plan(graph, plan))
    seen = observe(program, images, seed=seed)
    rings = {step.name: _ring_bits(step, seen.largest[step.index]) for step in program.gate_steps}
    plan = replace(plan, ring_bits=max(rings.values(), default=WIDE_RING_BITS), gate_ring_bits=rings)
    rate = failure_rate(compile_program(with_plan(graph, plan)), seen.wrapping)
    if rate > MAX_FAILURE_RATE:
        raise GraphError(
            f"{frac_bits} fraction bits predict {rate:.1e} failed truncations an image, more than {MAX_FAILURE_RATE:g};"
            " choose fewer fraction bits"
        )
    real = {step.name: seen.largest[step.index] / 2.0**step.frac_bits for step in program.gate_steps}
    return Calibration(plan=replace(plan, failure_rate=rate), largest=real, failure_rate=rate, images=len(images))


def observe(program: Program, images: npt.NDArray[np.floating], *, seed: int = 0) -> Observed:
    """Simulates ``images`` [N, C, H, W] (normalised, N > 0) and notes what truncations and gates meet.

    Args:
        program: of a graph with parameters.
        seed: of the truncation noise.
    """
    largest = {step.index: 0 for step in program.gate_steps}
    total = {step.index: 0.0 for step in program.steps if step.shift}

    def note(step: Step, values: I64) -> None:
        if step.kind == "gate":
            size = np.abs(values.astype(np.float64)).max(initial=0.0)
            largest[step.index] = max(largest[step.index], int(size))
        elif step.shift:
            total[step.index] += wrapping_pads(step, values)

    integers = quantise(program)
    weights = {step.name: (pack(step, integers[step.name][0]), integers[step.name][1]) for step in program.linear_steps}
    rng = np.random.default_rng(seed)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        simulate(program, weights, part, RandomPads(len(part), rng), note)
    return Observed(largest=largest, wrapping={index: value / len(images) for index, value in total.items()})


def calibration_choice(count: int, wanted: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Which of ``count`` training images to calibrate on: ``wanted`` at random (all, if there are fewer), sorted.

    Data sets are often stored class by class; their first images would show one class alone.
    """
    chosen: npt.NDArray[np.int64] = np.sort(np.random.default_rng(seed).permutation(count)[:wanted])
    return chosen


def _input_bits(images: npt.NDArray[np.floating], frac_bits: int) -> int:
    largest = int(np.abs(encode(images, frac_bits)).max())
    bits = max(largest, 1).bit_length() + HEADROOM_BITS
    if bits > INPUT_BITS:
        raise GraphError(
            f"the images hold values up to {largest / 2.0**frac_bits:.3g}, more than {INPUT_BITS} bits hold at"
            f" {frac_bits} fraction bits; normalise them or choose fewer"
        )
    return bits


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


def _ring_bits(step: Step, largest: int) -> int:
    # One bit for the sign; `largest` needs bit_length() bits. A layer that the images hardly reached has to hold what
    # others may do to it: a ring for values below one, at least, before the headroom.
    size = max(largest, (1 << step.frac_bits) - 1)
    bits = size.bit_length() + 1 + HEADROOM_BITS
    if bits > WIDE_RING_BITS:
        raise GraphError(
            f"{step.name} sees values up to {size / 2.0**step.frac_bits:.3g}, more than {WIDE_RING_BITS} bits hold"
            f" at {step.frac_bits} fraction bits; choose fewer"
        )
    return max(bits, MIN_RING_BITS)
