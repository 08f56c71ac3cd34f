"""Export against PyTorch (values) and against the masks (counts)."""

from __future__ import annotations

import operator
from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pi_runtime.errors import ExportError
from pi_runtime.export import export_onnx
from pi_runtime.onnx_graph import load_onnx

TOLERANCE = 1e-4  # of the issue; float32 rounding is far below it


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def relu_elements(path):
    """The elements of all Relu nodes of one image, by ONNX's own shape inference."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_model(path), data_prop=True)
    shapes = {info.name: info.type.tensor_type.shape.dim for info in proto.graph.value_info}
    return sum(
        prod(dim.dim_value for dim in shapes[node.output[0]][1:]) for node in proto.graph.node if node.op_type == "Relu"
    )


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.7, 1.0])
def test_onnxruntime_equals_pytorch(make_net, tmp_path, fraction, batch):
    model = make_net(fraction)
    path = tmp_path / "model.onnx"
    export_onnx(model, (1, 8, 8), path)
    images = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.abs(run_onnx(path, images) - expected).max() < TOLERANCE


@pytest.mark.parametrize("fraction", [0.0, 0.2, 1.0])
def test_relu_sizes_add_up_to_the_masks(make_net, tmp_path, fraction):
    model = make_net(fraction)
    kept = sum(int(module.relu_mask.sum()) for module in model.modules() if hasattr(module, "relu_mask"))
    path = tmp_path / "model.onnx"
    export_onnx(model, (1, 8, 8), path, metadata={"dataset": "digits"})
    assert relu_elements(path) == kept
    graph = load_onnx(path)
    assert graph.relu_count == kept
    assert graph.metadata == {"dataset": "digits", "relu_total": 6 * 64 + 8 * 16 * 2, "relu_count": kept}


def test_an_emptied_layer_leaves_no_node_and_a_full_one_a_plain_relu(make_net, tmp_path):
    model = make_net(1.0)
    model.relu1.relu_mask.zero_()
    model.relu2.relu_mask.view(-1)[::3] = 0
    path = tmp_path / "model.onnx"
    export_onnx(model, (1, 8, 8), path)
    names = [node.name for node in onnx.load_model(path).graph.node]
    assert not [name for name in names if name.startswith("relu1")]
    assert [name for name in names if name.startswith("relu3")] == ["relu3"]
    kinds = {node.name: node.op_type for node in onnx.load_model(path).graph.node}
    assert [kinds[name] for name in names if name.startswith("relu2")] == [
        "Reshape", "Gather", "Relu", "Shape", "Expand", "ScatterElements", "Reshape",
    ]  # fmt: skip


def test_batch_norm_is_folded_only_behind_a_convolution_of_its_own(make_net, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(make_net(), (1, 8, 8), path)
    kinds = [node.op_type for node in onnx.load_model(path).graph.node]
    assert kinds.count("BatchNormalization") == 1  # norm2 stands behind an addition


def test_export_does_not_touch_the_model(make_net, tmp_path):
    model = make_net(0.5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, (1, 8, 8), tmp_path / "model.onnx")
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class EveryOperation(nn.Module):
    """The operator set in the forms in which people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(1, 0), dilation=1)
        self.relu = nn.ReLU(inplace=True)
        self.average = nn.AvgPool2d(2, stride=1, padding=1)
        self.most = nn.MaxPool2d(3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc1 = nn.Linear(12, 5)
        self.norm = nn.BatchNorm1d(5)
        self.fc2 = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.shared(self.relu(self.shared(x)))
        y = F.pad(x[:, :, ::2, ::2], (1, 0, 0, 1, 2, 2))
        z = F.avg_pool2d(F.relu(self.average(x)), kernel_size=2)
        z = torch.add(F.pad(z, (0, 1, 0, 1, 2, 2)), y)
        z = self.most(torch.cat([z, z], dim=1)[:, 2:14])
        z = F.adaptive_avg_pool2d(z, 1)
        z = z.view(z.size(0), -1)
        z = torch.relu(self.norm(self.fc1(self.drop(z))))
        return self.fc2(z)


class MeanOver(EveryOperation):
    def forward(self, x):
        x = self.shared(self.relu(self.conv(x))).mean((2, 3))
        return operator.add(x, x)


@pytest.mark.parametrize("kind", [EveryOperation, MeanOver])
def test_operations_equal_pytorch(tmp_path, kind):
    torch.manual_seed(1)
    model = kind().eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, (2, 12, 13), path)
    images = torch.randn(3, 2, 12, 13)
    with torch.no_grad():
        expected = model(images).numpy()
    assert np.abs(run_onnx(path, images) - expected).max() < TOLERANCE
    graph = load_onnx(path)
    assert graph.output_shape == expected.shape[1:]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Sigmoid(nn.Module):
    def forward(self, x):
        return torch.sigmoid(x.flatten(1))


class WrongMask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("relu_mask", mask)

    def forward(self, x):
        return torch.relu(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branches(), "Branches cannot be traced .* must not branch on values"),
        (Sigmoid(), "sigmoid is outside the operator set"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), r"does not run on images of shape \(1, 8, 8\)"),
        (nn.Sequential(WrongMask(torch.ones(1, 4, 4))), r"relu_mask is \(1, 4, 4\), the activation \(1, 8, 8\)"),
        (nn.Sequential(WrongMask(torch.full((1, 8, 8), 0.5))), "relu_mask must hold only 0 and 1"),
        (nn.Sequential(nn.AvgPool2d(3, ceil_mode=True)), "ceil_mode is not supported"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), "padding must be with zeros"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(tmp_path, model, message):
    with pytest.raises(ExportError, match=message):
        export_onnx(model, (1, 8, 8), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
