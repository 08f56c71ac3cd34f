"""The backend over its three processes. Oracles: onnxruntime, the declared sizes, and sums over layers."""

from __future__ import annotations

import os
import signal

import numpy as np
import onnxruntime
import pytest

from pi_runtime.backends import open_backend
from pi_runtime.errors import BackendError, ConfigError, GraphError, LocalProtocolError, PiError
from pi_runtime.export import export_onnx
from pi_runtime.net.wire import HEADER_BYTES
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.bundle import part_bytes
from pi_runtime.preset.online import input_bytes, logit_bytes, opening_sizes
from pi_runtime.preset.program import compile_program

BATCH = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from torch import nn

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()
    )
    export_onnx(nn.Sequential(net, nn.Linear(16, 3)), (1, 8, 8), path)
    return path


@pytest.fixture(scope="module")
def ran(model):
    """One inference that made its own bundle and one that used a prepared one: images, logits, costs."""
    images = np.random.default_rng(0).normal(size=(BATCH, 1, 8, 8)).astype(np.float32)
    with open_backend("preset") as backend:
        backend.prepare(model)
        runs = [backend.infer(images)]
        backend.offline(BATCH)
        runs.append(backend.infer(images))
    return images, [run[0] for run in runs], [run[1] for run in runs]


def test_logits_are_onnxruntimes(ran, model):
    images, logits, _ = ran
    plain = onnxruntime.InferenceSession(str(model)).run(None, {"input": images})[0]
    for found in logits:
        # Under 64 roundings of one unit at 12 fraction bits reach a logit, with weights below one.
        assert np.abs(found - plain).max() < 64 * 2.0**-12
        assert (found.argmax(1) == plain.argmax(1)).all()


def test_online_bytes_and_rounds_are_the_declared_ones(ran, model):
    _, _, costs = ran
    program = compile_program(load_onnx(model))
    sizes = [opening_sizes(step, BATCH) for step in program.gate_steps]
    frames = HEADER_BYTES * (1 + len(sizes))
    for cost in costs:
        online = cost.phases["online"]
        assert online.sent_bytes["client"] == input_bytes(program, BATCH) + sum(s.answer for s in sizes) + frames
        assert online.sent_bytes["server"] == logit_bytes(program, BATCH) + sum(s.opening for s in sizes) + frames
        assert online.sent_bytes["dealer"] == 0
        assert online.messages == 2 * (1 + len(sizes))
        assert online.rounds == 1 + len(sizes)


def test_layers_add_up_to_their_phase(ran, model):
    _, _, costs = ran
    nodes = {node.name for node in load_onnx(model).nodes} | {"input", "output"}
    for cost in costs:
        layers = [layer for layer in cost.layers if layer.phase == "online"]
        assert {layer.name for layer in layers} <= nodes
        for role in ("client", "server", "dealer"):
            assert sum(layer.cost.sent_bytes[role] for layer in layers) == cost.phases["online"].sent_bytes[role]
        assert sum(layer.cost.rounds for layer in layers) == cost.phases["online"].rounds
        assert sum(layer.relu_count for layer in layers) == compile_program(load_onnx(model)).graph.relu_count
        assert 0 < sum(layer.cost.seconds for layer in layers) < cost.phases["online"].seconds


def test_offline_layers_take_the_dealer_less_than_the_phase(ran, model):
    """Every layer that has material took time; all together took less than the client's clock of the phase."""
    program = compile_program(load_onnx(model))
    dealt = [step.name for step in program.steps if step.kind != "public"]
    for cost in ran[2]:
        layers = [layer for layer in cost.layers if layer.phase == "offline"]
        assert len(layers) == len(dealt)
        assert all(layer.cost.seconds > 0 for layer in layers)
        assert sum(layer.cost.seconds for layer in layers) < cost.phases["offline"].seconds
    first, second = ([layer.cost.seconds for layer in cost.layers if layer.phase == "offline"] for cost in ran[2])
    assert first != second, "each bundle has its own clock"


def test_offline_bytes_are_the_material(ran, model):
    program = compile_program(load_onnx(model))
    linear = sum(part_bytes(step, BATCH) for step in program.linear_steps)
    gates = sum(part_bytes(step, BATCH) for step in program.gate_steps)
    for cost in ran[2]:
        sent = cost.phases["offline"].sent_bytes
        # Beside the material a handful of control messages and frames.
        assert linear <= sent["client"] < linear + 3000
        assert linear + gates <= sent["dealer"] < linear + gates + 3000
        assert sent["server"] < 1000


def test_setup_gives_the_dealer_the_weight_pads_once(ran, model):
    _, _, costs = ran
    program = compile_program(load_onnx(model))
    weights = 8 * sum(int(np.prod(step.node.param_shapes["weight"])) for step in program.linear_steps)
    assert costs[0].phases["setup"] == costs[1].phases["setup"]
    assert costs[0].phases["setup"].sent_bytes["server"] > weights


def test_tls_costs_bytes_and_changes_nothing_else(ran, model):
    images, _, costs = ran
    with open_backend("preset", tls=True) as backend:
        backend.prepare(model)
        logits, cost = backend.infer(images)
    assert (logits.argmax(1) == ran[1][0].argmax(1)).all()
    plain, secure = costs[0].phases["online"], cost.phases["online"]
    assert (secure.messages, secure.rounds) == (plain.messages, plain.rounds)
    for role, messages in (("client", secure.messages // 2), ("server", secure.messages // 2)):
        # A record adds 22 bytes, and each of these messages fits into one.
        assert secure.sent_bytes[role] == plain.sent_bytes[role] + 22 * messages


def test_a_killed_process_ends_the_inference_with_an_error(model):
    with open_backend("preset") as backend:
        backend.prepare(model)
        os.kill(backend._processes["server"].pid, signal.SIGKILL)
        with pytest.raises(PiError, match=r"server.*(killed by signal 9|went away|closed|answers)"):
            backend.infer(np.zeros((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize("role", ["server", "dealer"])
def test_a_process_that_dies_under_the_client_leaves_its_last_words(model, monkeypatch, role):
    with open_backend("preset") as backend:
        backend.prepare(model)
        provider, process = backend._prepared()._provider, backend._processes[role]
        make = provider._make

        def kill_first(*arguments):  # with both connected: nobody waits for one to come back
            os.kill(process.pid, signal.SIGKILL)
            make(*arguments)

        monkeypatch.setattr(provider, "_make", kill_first)
        with pytest.raises(BackendError, match=rf"the {role} process was killed by signal 9: .+ \(.*{role}.*\)$"):
            backend.offline(1)


def test_misuse_is_refused_by_name(model, tmp_path):
    with open_backend("preset") as backend:
        with pytest.raises(LocalProtocolError, match="call prepare first"):
            backend.infer(np.zeros((1, 1, 8, 8), np.float32))
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        with pytest.raises(GraphError):
            backend.prepare(tmp_path / "bad.onnx")
    for options, message in (
        ({"threads": 0}, "threads must be >= 1"),
        ({"port": -1}, "port must be between 0 and 65534"),
        ({"profile": "moon"}, "a network profile is one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_backend("preset", **options)
