"""Networks whose removed ReLUs became a*x + b, through export and backends. Oracles: torch, and the identity twin.

The twin has the same weights and mask, but its removed ReLUs are the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from linearize.networks import build_network
from linearize.relu_mask import masked_layers, relu_total, set_relu_mask
from linearize.replacement import plain_layers, use_affine, use_affine_locations
from pi_runtime.backend import RunCost
from pi_runtime.backends import open_backend
from pi_runtime.export import export_onnx
from pi_runtime.graph import Graph
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.estimate import online_messages
from pi_runtime.preset.program import compile_program

SHAPE = (1, 8, 8)
# Without any ReLU: one right behind a convolution, and one behind the addition that ends a block.
EMPTY = ("layer2.0.relu1", "layer3.0.relu2")
AFFINE = ("affine", "locations")


def network(replacement: str) -> nn.Module:
    model = build_network("resnet18", 4, 10, SHAPE, seed=1)
    rng = torch.Generator().manual_seed(2)
    set_relu_mask(model, torch.rand(relu_total(model), generator=rng) < 0.3)
    for name in EMPTY:
        masked_layers(model)[name].relu_mask.fill_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 2.0, generator=rng)
    if replacement == "affine":
        use_affine(model)
    if replacement == "locations":
        use_affine_locations(model)
    for layer in masked_layers(model).values():
        for part in layer.parameters():
            part.data.add_(torch.randn(part.shape, generator=rng) * (0.2 if part.dim() == 2 else 0.05))
    return model.eval()


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Path]]:
    root = tmp_path_factory.mktemp("networks")
    found = {}
    for name in (*AFFINE, "identity"):
        model, path = network(name), root / f"{name}.onnx"
        export_onnx(plain_layers(model), SHAPE, path)
        found[name] = model, path
    return found


def images(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(4))


def run(backend_name: str, path: Path, batch: torch.Tensor) -> tuple[np.ndarray, RunCost]:
    with open_backend(backend_name) as backend:
        backend.prepare(path)
        return backend.infer(batch.numpy())


def affines(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.op == "affine"]


@pytest.mark.parametrize("name", AFFINE)
def test_plaintext_logits_are_torchs(name: str, networks: Mapping[str, tuple[nn.Module, Path]]) -> None:
    model, path = networks[name]
    with torch.no_grad():
        expected = model(images(3)).numpy()
    np.testing.assert_allclose(run("plaintext", path, images(3))[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", AFFINE)
def test_only_what_no_convolution_takes_in_is_left(name: str, networks: Mapping[str, tuple[nn.Module, Path]]) -> None:
    layers = set(masked_layers(networks[name][0]))
    left = {node.rpartition(".0.norm")[0] or node.rpartition(".0")[0] for node in affines(load_onnx(networks[name][1]))}
    # Behind a convolution: a layer without ReLUs, and two of a single location a channel.
    assert layers - left == {"layer2.0.relu1", "layer4.0.relu1", "layer4.1.relu1"}
    assert affines(load_onnx(networks["identity"][1])) == []


@pytest.mark.parametrize("name", AFFINE)
def test_the_declared_online_phase_is_the_twins(name: str, networks: Mapping[str, tuple[nn.Module, Path]]) -> None:
    def declared(twin: str) -> list[tuple[object, ...]]:
        program = compile_program(load_onnx(networks[twin][1]))
        # The numbers of the steps behind an affine are higher by one, which costs nothing.
        return [(m.sender, m.receiver, m.kind, m.payload_bytes, m.framing_bytes) for m in online_messages(program, 2)]

    assert declared(name) == declared("identity")


@pytest.mark.parametrize("name", AFFINE)
def test_preset_answers_as_torch_at_the_online_cost_of_the_twin(
    name: str, networks: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    batch, costs = images(2), {}
    for twin in (name, "identity"):
        model, path = networks[twin]
        logits, costs[twin] = run("preset", path, batch)
        with torch.no_grad():
            expected = model(batch).numpy()
        assert (logits.argmax(1) == expected.argmax(1)).all()
        # Without a calibrated plan the numbers have few fraction bits.
        assert np.abs(logits - expected).max() < 0.05 * np.ptp(expected)
    ours, twins = (costs[twin].phases["online"] for twin in (name, "identity"))
    assert (ours.sent_bytes, ours.messages, ours.rounds) == (twins.sent_bytes, twins.messages, twins.rounds)


@pytest.mark.parametrize("name", AFFINE)
def test_crypten_answers_as_torch_and_pays_a_round_for_each_affine_left(
    name: str, networks: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    model, path = networks[name]
    logits, cost = run("crypten", path, images(2))
    with torch.no_grad():
        expected = model(images(2)).numpy()
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert np.abs(logits - expected).max() < 0.01 * np.ptp(expected)
    paid = {layer.name: layer.cost.rounds for layer in cost.layers if layer.phase == "online" and layer.op == "affine"}
    assert paid == dict.fromkeys(affines(load_onnx(path)), 1), "slope and offset are secret: a product of shares"
