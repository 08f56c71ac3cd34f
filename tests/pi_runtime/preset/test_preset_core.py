"""The protocol's core in one process: against the simulator bit by bit, and the simulator against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from in_memory import secure
from torch import nn

from pi_runtime.errors import GraphError, LocalProtocolError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset import online
from pi_runtime.preset.linear_ops import quantise
from pi_runtime.preset.plan import FixedPointPlan, plan_of, with_plan
from pi_runtime.preset.program import compile_program
from pi_runtime.preset.shares import BundlePads
from pi_runtime.preset.simulator import RandomPads, simulate
from pi_runtime.primitives.prg import Seed


class EveryOperation(nn.Module):
    """All operators, MaxPool with padding and a three-wide window, pooling by six, a BatchNorm behind an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(1, 0))
        self.most = nn.MaxPool2d(3, stride=2, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.average = nn.AvgPool2d((2, 3), stride=1, padding=(1, 1))
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        x = self.most(torch.relu(self.conv(x)))
        x = torch.relu(self.norm(self.shared(x) + x))
        y = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        z = torch.relu(self.average(torch.cat([y, y[:, 2:6]], dim=1)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(z, 1), 1))


def graph_of(model, shape, path):
    export_onnx(model, shape, path)
    return load_onnx(path)


@pytest.fixture
def residual(make_net, tmp_path):
    return graph_of(make_net(0.4), (1, 8, 8), tmp_path / "m.onnx"), tmp_path / "m.onnx"


@pytest.fixture
def every(tmp_path):
    torch.manual_seed(3)
    model = EveryOperation().eval()
    nn.init.normal_(model.norm.bias)
    return graph_of(model, (2, 12, 13), tmp_path / "m.onnx"), tmp_path / "m.onnx"


@pytest.mark.parametrize("net", ["residual", "every"])
@pytest.mark.parametrize("batch", [1, 3])
def test_secure_equals_simulator_bit_by_bit_and_both_equal_float(request, net, batch):
    graph, path = request.getfixturevalue(net)
    images = np.random.default_rng(batch).normal(size=(batch, *graph.input_shape)).astype(np.float32)
    logits, _, pads = secure(graph, images, batch)
    program = compile_program(graph)
    simulated = simulate(program, quantise(program), images, pads)
    assert np.array_equal(logits, simulated.logits)
    assert sum(simulated.wrapped.values()) == 0
    plain = onnxruntime.InferenceSession(str(path)).run(None, {"input": images})[0]
    # A few hundred roundings of half a unit at 12 fraction bits, times weights near one.
    assert np.abs(logits - plain).max() < 0.02


def test_messages_have_the_declared_sizes_and_only_gates_speak(residual):
    graph, _ = residual
    images = np.zeros((2, 1, 8, 8), np.float32)
    _, sizes, _ = secure(graph, images, 2)
    program = compile_program(graph)
    assert list(sizes) == [step.name for step in program.gate_steps]
    for step in program.gate_steps:
        declared = online.opening_sizes(step, 2)
        assert sizes[step.name] == (declared.opening, declared.answer)
        assert declared.opening == -(-2 * step.gate_count * 24 // 8) + -(-2 * step.gate_count * 5 // 8)


def test_a_layer_that_kept_nothing_sends_nothing(make_net, tmp_path):
    model = make_net(0.5)
    model.relu2.relu_mask.zero_()
    graph = graph_of(model, (1, 8, 8), tmp_path / "m.onnx")
    _, sizes, _ = secure(graph, np.zeros((1, 1, 8, 8), np.float32), 1)
    assert list(sizes) == ["relu1", "relu3"]


def test_values_beyond_the_ring_wrap_as_in_the_protocol_and_are_counted(residual):
    graph = with_plan(residual[0], FixedPointPlan(ring_bits=12))
    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32) * 4
    logits, _, pads = secure(graph, images, 2)
    program = compile_program(graph)
    simulated = simulate(program, quantise(program), images, pads)
    assert sum(simulated.wrapped.values()) > 0
    assert np.array_equal(logits, simulated.logits)


@pytest.mark.parametrize("frac_bits", [8, 16])
def test_error_falls_with_the_fraction_bits(residual, frac_bits):
    graph, path = residual
    images = np.random.default_rng(5).normal(size=(16, 1, 8, 8)).astype(np.float32)
    program = compile_program(
        with_plan(graph, FixedPointPlan(frac_bits=frac_bits, weight_frac_bits=frac_bits, ring_bits=frac_bits + 8))
    )
    pads = RandomPads(16, np.random.default_rng(1))
    error = np.abs(
        simulate(program, quantise(program), images, pads).logits
        - onnxruntime.InferenceSession(str(path)).run(None, {"input": images})[0]
    ).max()
    assert error < 40 * 2.0**-frac_bits


def test_one_time_use_on_the_client(residual):
    graph, _ = residual
    program = compile_program(graph.public())
    pads = BundlePads(Seed.fresh(), b"b" * 16, bytes.fromhex(graph.public_hash), 1)
    client = online.ClientInference(program, pads)
    images = np.zeros((1, 1, 8, 8), np.float32)
    client.mask_input(images)
    with pytest.raises(LocalProtocolError, match="input pad of this bundle was used"):
        client.mask_input(images)
    step = program.gate_steps[0]
    opening = bytes(online.opening_sizes(step, 1).opening)
    client.answer(step, opening)
    with pytest.raises(LocalProtocolError, match="refuses a second opening"):
        client.answer(step, opening)


def test_two_bundles_share_no_pad(residual):
    graph, _ = residual
    seed, graph_hash = Seed.fresh(), bytes.fromhex(graph.public_hash)
    first, second = (BundlePads(seed, bytes([i]) * 16, graph_hash, 2).input((64,)) for i in (1, 2))
    words = np.concatenate([first, second]).reshape(-1)
    assert len(np.unique(words)) == len(words)


def test_plan_survives_the_public_graph_and_bad_plans_are_refused(residual):
    graph, _ = residual
    plan = FixedPointPlan(frac_bits=10, gate_ring_bits={"relu1": 20})
    planned = with_plan(graph, plan)
    assert plan_of(planned.public()) == plan
    assert planned.public_hash != graph.public_hash
    with pytest.raises(GraphError, match="ring_bits must be an integer from 4 to 32, got 40"):
        FixedPointPlan(ring_bits=40)
    with pytest.raises(GraphError, match="give it fewer"):
        compile_program(with_plan(graph, FixedPointPlan(weight_frac_bits=0, wire_frac_bits={"stem": 20})))


def test_public_graph_cannot_serve(residual):
    with pytest.raises(GraphError, match="needs the ONNX file"):
        quantise(compile_program(residual[0].public()))
