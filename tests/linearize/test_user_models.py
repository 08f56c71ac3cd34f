import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from linearize.any_network import mask_relus
from linearize.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from linearize.config import load_config
from linearize.errors import CheckpointError, ConfigError, NetworkError
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import get_relu_mask, layer_counts, relu_total, set_relu_mask
from linearize.run import run_linearization, train_baseline
from linearize.user_models import build_user_network, load_weights

SHAPE = (1, 8, 8)
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.linear = nn.Linear(36, num_classes)

    def forward(self, x):
        return self.linear(F.relu(self.conv(x)).flatten(1))

def net(num_classes): return Net(num_classes)
def sized(num_classes, input_shape):
    pixels = input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 20), nn.ReLU(), nn.Linear(20, num_classes))
def any_arguments(**given): return Net(given["num_classes"])
def eleven(): return Net(11)
def nothing(num_classes): return "a network"
def asks(num_classes, depth, width=3): return Net(num_classes)
instance = Net(10)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current directory; its name is new for each test, as Python keeps modules."""
    name = f"own_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(("function", "relus"), [("net", 36), ("sized", 20), ("any_arguments", 36)])
def test_a_function_gets_what_it_has_parameters_for(own: str, function: str, relus: int) -> None:
    network = build_network(f"{own}:{function}", None, 7, SHAPE, seed=3)
    assert relu_total(network) == relus
    with torch.no_grad():
        assert network(torch.zeros(2, *SHAPE)).shape == (2, 7)
    torch.manual_seed(0)
    assert same(network, build_network(f"{own}:{function}", None, 7, SHAPE, seed=3))
    assert not same(network, build_network(f"{own}:{function}", None, 7, SHAPE, seed=4))


def test_torchvision_networks_take_the_number_of_classes(tmp_path: Path) -> None:
    reference = torchvision.models.squeezenet1_1(num_classes=3)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "w.safetensors")
    network = build_user_network("torchvision:squeezenet1_1", 3, (3, 33, 33), weights=tmp_path / "w.safetensors")
    x = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(x), reference.eval()(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", "torchvision has no classifier 'resnet81'; the closest name is resnet18"),
        ("torchvision:mobilenet_v2", "is a ReLU6"),
        ("no_such_module:net", "cannot import no_such_module"),
        ("{own}:nets", "nets must be a function that returns a network, own.* has nothing of that name"),
        ("{own}:instance", "instance must be a function .* has a Net of that name"),
        ("{own}:nothing", "must return a torch.nn.Module, got str"),
        ("{own}:asks", "asks for depth; it can be given num_classes and input_shape only"),
        ("{own}:eleven", "returns 11 logits, the images have 10 classes"),
        ("given:Net", r"given to linearize.linearize; load_checkpoint\(path, model=...\) takes it"),
    ],
)
def test_a_wrong_name_is_explained(own: str, spec: str, message: str) -> None:
    shape = (3, 32, 32) if spec.startswith("torchvision") else SHAPE
    with pytest.raises(NetworkError, match=message):
        build_network(spec.format(own=own), None, 10, shape)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_weights_of_tied_layers_may_stand_once_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, model = Tied(), Tied()
    safetensors.torch.save_model(saved, str(tmp_path / "w.safetensors"))
    load_weights(model, tmp_path / "w.safetensors")
    assert same(saved, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("first.bias"), r"lacks first\.bias of the network"),
        (
            lambda tensors: tensors.update({"first.bais": torch.zeros(4)}),
            "first.bais is not in the network; the closest name is first.bias",
        ),
        (
            lambda tensors: tensors.update({"first.bias": torch.zeros(5)}),
            r"first.bias is of shape \(5,\), in the network it is \(4,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change, message: str) -> None:
    tensors = {key: value.clone() for key, value in Tied().state_dict().items()}
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_weights(Tied(), tmp_path / "w.safetensors")


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(Tied(), tmp_path / "w.safetensors")
    torch.save(Tied().state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_weights(Tied(), tmp_path / "w.pt")


def test_a_checkpoint_finds_its_network_again_but_runs_code_only_when_told(own: str, tmp_path: Path) -> None:
    spec = f"{own}:net"
    network = build_network(spec, None, 10, SHAPE, seed=1)
    set_relu_mask(network, torch.arange(relu_total(network)) % 2 == 0)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network, {"network": spec, "width": None, "num_classes": 10, "input_shape": SHAPE})
    with pytest.raises(
        CheckpointError, match=rf"its network is made by {spec}, which would be called; if you trust it"
    ):
        load_checkpoint(path)
    loaded, _ = load_checkpoint(path, run_code=True)
    assert same(network, loaded)
    assert torch.equal(get_relu_mask(network), get_relu_mask(loaded))


def test_tied_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    model = Tied()
    masked = mask_relus(model, (4,))
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, masked, {"network": "given:Tied", "width": None, "num_classes": 4, "input_shape": [4]})
    loaded, _ = load_checkpoint(path, model=model)
    assert same(masked, loaded)
    assert loaded.get_submodule("first").weight is loaded.get_submodule("second").weight


def test_a_whole_run_from_given_weights(own: str, tmp_path: Path) -> None:
    start = build_network(f"{own}:net", None, 10, SHAPE, seed=9)
    weights = {key: value for key, value in start.state_dict().items() if not key.endswith("relu_mask")}
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    config = load_config(
        None,
        {
            "relu_budget": 10,
            "method": "random_mask",
            "device": "cpu",
            "data.limit": 60,
            "network.model": f"{own}:net",
            "network.weights": str(tmp_path / "w.safetensors"),
            "baseline.epochs": 0,
            "finetune.epochs": 1,
        },
    )
    result = run_linearization(config, tmp_path / "run", Reporter(quiet=True))
    assert (result.relu_total, result.relu_count) == (36, 10)
    baseline, _ = load_checkpoint(tmp_path / "run" / "baseline.safetensors", run_code=True)
    assert same(start, baseline)
    metadata = read_metadata(result.checkpoint)
    assert (metadata["network"], metadata["width"]) == (f"{own}:net", None)
    linearized, _ = load_checkpoint(result.checkpoint, run_code=True)
    assert layer_counts(linearized) == metadata["layer_counts"] == {"relu": 10}


def test_settings_of_the_network_that_contradict_are_named(own: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.width must be unset for network\.model, got 8"):
        load_config(None, {"network.model": f"{own}:net", "network.width": 8})
    with pytest.raises(ConfigError, match=r"network\.model"):
        load_config(None, {"network.model": "resnet18"})
    config = load_config(None, {"network.model": f"{own}:net", "baseline.epochs": 0, "data.limit": 30})
    with pytest.raises(ConfigError, match=r"baseline.epochs must be at least 1, got 0"):
        train_baseline(config, tmp_path / "run", Reporter(quiet=True))
