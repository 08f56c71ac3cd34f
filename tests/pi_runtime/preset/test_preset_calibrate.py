"""Calibration against what the images show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pi_runtime.errors import ConfigError, GraphError
from pi_runtime.export import export_onnx
from pi_runtime.graph import Graph, parse_public
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.calibrate import calibrate, calibration_choice, observe
from pi_runtime.preset.failure import failure_rate
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.plan import KEY, plan_of, with_plan
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


def test_too_many_fraction_bits_are_refused(graph):
    with pytest.raises(GraphError, match=r"predict .* failed truncations an image, more than 0\.0001; choose"):
        calibrate(graph, images(8) * 50, frac_bits=22)


def test_the_plan_states_the_rate_that_its_own_scales_and_rings_give(graph):
    found = calibrate(graph, images(40), frac_bits=16)
    program = compile_program(with_plan(graph, found.plan))
    # 16 + 2 bits a shift: the simulation of the same images under the chosen rings instead of wide ones.
    again = failure_rate(program, observe(program, images(40)).wrapping)
    assert found.plan.failure_rate == found.failure_rate == pytest.approx(again, rel=1e-3)
    assert 0 < again < 1e-4


def test_no_role_takes_a_plan_that_states_more_failures_than_the_limit(graph):
    document = calibrate(graph, images(8)).plan.to_metadata()
    for rate in (2e-4, -1.0, float("nan"), "0.1", True):
        spoilt = Graph(
            input=graph.input,
            input_shape=graph.input_shape,
            output=graph.output,
            nodes=graph.nodes,
            metadata={KEY: document | {"failure_rate": rate}},
        )
        with pytest.raises(GraphError, match=r"failure_rate must be a number from 0 to 0\.0001, got"):
            compile_program(spoilt.public())


def test_the_stated_rate_and_the_input_range_survive_the_public_graph(graph):
    plan = calibrate(graph, images(8), frac_bits=16).plan
    sent = parse_public(json.loads(with_plan(graph, plan).public_json()), origin="here")
    assert plan_of(sent) == plan


def test_inputs_may_be_up_to_twice_as_large_as_the_largest_seen(graph):
    seen = np.zeros((2, 1, 8, 8), np.float32)
    seen[1, 0, 3, 4] = -1.5  # 6144 units at 12 fraction bits: 13 bits, and one to spare
    assert calibrate(graph, seen).plan.input_bits == 14


def test_a_layer_that_saw_nothing_still_holds_values_up_to_two(make_net, tmp_path):
    model = make_net(0.4)
    with torch.no_grad():
        model.stem_norm.weight.zero_()
        model.stem_norm.bias.zero_()
    export_onnx(model, (1, 8, 8), tmp_path / "m.onnx")
    found = calibrate(load_onnx(tmp_path / "m.onnx"), images(8))
    assert found.largest["relu1"] == 0
    assert found.plan.gate_bits("relu1") == 1 + 12 + 1


def test_a_network_without_any_gate_is_calibrated(make_net, tmp_path):
    export_onnx(make_net(0), (1, 8, 8), tmp_path / "m.onnx")
    assert calibrate(load_onnx(tmp_path / "m.onnx"), images(8)).plan.gate_ring_bits == {}


def test_no_images_are_refused(graph):
    with pytest.raises(ConfigError, match="calibration needs at least one image"):
        calibrate(graph, images(0))


def test_images_beyond_any_input_range_are_refused(graph):
    with pytest.raises(GraphError, match=r"the images hold values up to .*, more than 31 bits hold"):
        calibrate(graph, images(2) * 1e6)


def test_calibration_images_are_drawn_from_all_over_a_sorted_data_set():
    chosen = calibration_choice(1000, 64)
    assert len(set(chosen.tolist())) == 64
    assert len({index // 100 for index in chosen.tolist()}) == 10  # each of ten classes of a hundred
    assert calibration_choice(5, 64).tolist() == [0, 1, 2, 3, 4]
