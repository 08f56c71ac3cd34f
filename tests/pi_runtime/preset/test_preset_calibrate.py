"""Calibration against what the images show, and the failure rate against a count made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pi_runtime.errors import GraphError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.calibrate import calibrate, failure_rate
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.plan import FixedPointPlan, with_plan
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.simulator import RandomPads, simulate


@pytest.fixture
def graph(make_net, tmp_path):
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "m.onnx")
    return load_onnx(tmp_path / "m.onnx")


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


def test_calibrated_rings_hold_images_twice_as_large_and_not_much_more(graph):
    found = calibrate(graph, images(40))
    program = compile_program(with_plan(graph, found.plan))
    weights = quantise(program)
    inside = simulate(program, weights, images(40), RandomPads(40, np.random.default_rng(1)))
    assert sum(inside.wrapped.values()) == 0
    for name, largest in found.largest.items():
        half_ring = 2.0 ** (found.plan.gate_bits(name) - 1 - found.plan.frac_bits)
        assert 2 * largest <= half_ring < 8 * largest


def test_weights_fit_sixteen_bits(graph):
    found = calibrate(graph, images(8), frac_bits=15)
    program = compile_program(with_plan(graph, found.plan))
    weights = quantise(program)
    # Of a layer with zero bits the kernels see the weights without them.
    assert max(np.abs(weights[step.name][0] >> step.zero_bits).max() for step in program.linear_steps) < 2**15


# By hand, 12 bits a truncation, gates of 24 bits (see errors above 40 bits of shifts), logits of 32 (above 32):
# stem 12, conv1 24, conv2 36, norm2 48 at relu3: seen. conv1 is at 36 there and at 48 at the logits; conv2 and the
# shortcut are at 36 at the logits; norm2 is at 24 and fc at 12. A relu3 that keeps all ends what it does not see.
@pytest.mark.parametrize(
    ("whole_last_layer", "seen"), [(False, {"stem", "conv1", "conv2", "shortcut"}), (True, {"stem"})]
)
def test_failure_rate_counts_what_can_be_seen(make_net, tmp_path, whole_last_layer, seen):
    model = make_net(0.4)
    if whole_last_layer:
        model.relu3.relu_mask.fill_(1)
    export_onnx(model, (1, 8, 8), tmp_path / "m.onnx")
    program = compile_program(with_plan(load_onnx(tmp_path / "m.onnx"), FixedPointPlan(ring_bits=24, zero_bits=0)))
    for step in program.linear_steps:
        alone = {other.index: 2.0**30 * (other is step) for other in program.linear_steps}
        assert failure_rate(program, alone) == (2.0**-34 if step.name in seen else 0.0), step.name


def test_too_many_fraction_bits_are_refused(graph):
    with pytest.raises(GraphError, match=r"predict .* failed truncations an image, more than 0\.0001; choose"):
        calibrate(graph, images(8) * 50, frac_bits=22)
