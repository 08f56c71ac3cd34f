"""Whole layers compared, then masked. Oracles: onnxruntime, and the bytes of ReLU layers that keep all they have."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from pi_runtime.backends import open_backend
from pi_runtime.crypten.unmasked import MaskedReLU, build_unmasked_graph
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One network twice: with part of its first layer's ReLUs, and with all of them."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models")

    class Masked(torch.nn.Module):
        def __init__(self, relu_mask):
            super().__init__()
            self.register_buffer("relu_mask", relu_mask)

        def forward(self, x):
            return self.relu_mask * torch.relu(x) + (1 - self.relu_mask) * x

    body = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3), torch.nn.Linear(64, 3)
    full, part = torch.ones(4, 6, 6), (torch.rand(4, 6, 6) < 0.2).float()
    paths = []
    for name, relu_mask in (("part", part), ("full", full)):
        net = torch.nn.Sequential(
            body[0], Masked(relu_mask), body[1], torch.nn.ReLU(), torch.nn.Flatten(), body[2]
        ).eval()
        paths.append(directory / f"{name}.onnx")
        export_onnx(net, (1, 6, 6), paths[-1])
    return paths


def relu_bytes(cost):
    return {
        layer.name: layer.cost.sent_bytes for layer in cost.layers if layer.phase == "online" and layer.op == "relu"
    }


def infer(backend_name, model, images):
    with open_backend(backend_name) as backend:
        backend.prepare(model)
        return backend.infer(images)


def test_logits_are_onnxruntimes_and_relus_cost_as_if_all_were_kept(models):
    part, full = models
    images = np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype(np.float32)
    logits, cost = infer("crypten-unmasked", part, images)
    plain = onnxruntime.InferenceSession(str(part)).run(None, {"input": images})[0]
    assert np.abs(logits - plain).max() < 2.0**-9
    whole = relu_bytes(infer("crypten", full, images)[1])
    gathered = relu_bytes(infer("crypten", part, images)[1])
    unmasked = relu_bytes(cost)
    assert list(unmasked.values()) == list(whole.values())
    assert sum(gathered[next(iter(gathered))].values()) < 0.5 * sum(unmasked[next(iter(unmasked))].values())


def test_only_partly_kept_layers_are_replaced(models):
    kinds = [
        sum(isinstance(module, MaskedReLU) for module in build_unmasked_graph(load_onnx(path))._modules.values())
        for path in models
    ]
    assert kinds == [1, 0]
