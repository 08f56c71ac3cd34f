"""Networks that are not this project's: linearized, exported, run. Oracle: the torch module itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import linearize
from pi_runtime.backends import open_backend
from pi_runtime.cli.main import cli
from pi_runtime.export import export_onnx

RESNET_SHAPE = (3, 32, 32)
SHARED_SHAPE = (3, 8, 8)
BUDGET = 300


class Shared(nn.Module):
    """Two functional ReLUs, one of them of flat features, and a module that is called twice."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.bn(self.conv(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = self.Body()
        self.dense = nn.Linear(4 * 16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.max_pool2d(self.body(self.body(x)) + x, 2)
        x = F.dropout(F.relu(self.dense(x.flatten(1))), 0.2, self.training)
        return self.head(x)


def images(shape: tuple[int, ...], count: int = 4) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def linearized(model: nn.Module, shape: tuple[int, ...], **settings: object) -> nn.Module:
    """`model`, settled in train mode first so that its BatchNorms do something, at BUDGET ReLUs."""
    with torch.no_grad():
        model.train()(images(shape, 8))
    data = images(shape, 10), torch.arange(10) % 5
    module, record = linearize.linearize(
        model.eval(), data, data, budget=BUDGET, reporter=linearize.Reporter(quiet=True), device="cpu", **settings
    )
    assert record.relu_count == BUDGET
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, tuple[int, ...], Path]]:
    torch.manual_seed(0)
    quick = {"bcd.drc": 60, "bcd.rt": 2, "snl.max_epochs": 1, "finetune.epochs": 1}
    networks = {
        "resnet18": (
            linearized(
                torchvision.models.resnet18(num_classes=5),
                RESNET_SHAPE,
                method="random_mask",
                settings={"finetune.epochs": 0},
            ),
            RESNET_SHAPE,
        ),
        "shared": (linearized(Shared(), SHARED_SHAPE, settings=quick), SHARED_SHAPE),
    }
    directory = tmp_path_factory.mktemp("networks")
    for name, (module, shape) in networks.items():
        export_onnx(module, shape, directory / f"{name}.onnx")
    return {name: (*entry, directory / f"{name}.onnx") for name, entry in networks.items()}


@pytest.mark.parametrize("name", ["resnet18", "shared"])
def test_plaintext_logits_are_torchs(exported, name: str) -> None:
    module, shape, path = exported[name]
    with torch.no_grad():
        expected = module(images(shape)).numpy()
    with open_backend("plaintext") as backend:
        backend.prepare(path)
        logits, _ = backend.infer(images(shape).numpy())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "shared"])
def test_relus_of_the_graph_are_the_budget(exported, name: str) -> None:
    path = exported[name][2]
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim][1:] for info in graph.value_info}
    relus = [node for node in graph.node if node.op_type == "Relu"]
    assert sum(int(np.prod(sizes[node.output[0]])) for node in relus) == BUDGET


@pytest.mark.parametrize("name", ["resnet18", "shared"])
def test_secure_answers_are_torchs(exported, name: str) -> None:
    module, shape, path = exported[name]
    one = images(shape, 1)
    with torch.no_grad():
        expected = module(one).numpy()
    with open_backend("preset") as backend:
        backend.prepare(path)
        logits, _ = backend.infer(one.numpy())
    assert logits.argmax(1) == expected.argmax(1)
    # Without a calibrated plan the numbers have few fraction bits.
    assert np.abs(logits - expected).max() < 0.1 * np.ptp(expected)


def test_a_network_of_ones_own_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_shell_network.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, input_shape):\n"
        "    conv = nn.Conv2d(input_shape[0], 4, 3, stride=2)\n"
        "    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(36, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    flags = "--model own_shell_network:net --budget 10 --method random_mask --device cpu --data.limit 80"
    quick = "--baseline.epochs 1 --finetune.epochs 0"
    command = ["linearize", *flags.split(), *quick.split(), "--run-dir", str(run_dir)]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert json.loads(result.stdout.splitlines()[-1])["relu_count"] == 10
    result = CliRunner().invoke(cli, ["export", "--run-dir", str(run_dir)], catch_exceptions=False)
    assert json.loads(result.stdout.splitlines()[-1])["relu_count"] == 10
    facts = onnx.load(run_dir / "model.onnx").metadata_props
    assert any("own_shell_network:net" in fact.value for fact in facts)
