import pytest
import torch
import torch.fx
from torch import nn

from linearize.errors import ConfigError
from linearize.networks import build_network
from linearize.relu_mask import MaskedReLU, layer_counts, relu_total

ALLOWED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, MaskedReLU, nn.AdaptiveAvgPool2d)


@pytest.mark.parametrize(
    ("name", "shape", "total"),
    [
        ("resnet18", (3, 32, 32), 491_520),
        ("resnet18", (3, 64, 64), 1_966_080),
        ("resnet18", (1, 8, 8), 30_720),
        ("wrn22", (3, 32, 32), 1_359_872),
        ("wrn22", (3, 64, 64), 5_439_488),
    ],
)
def test_relu_totals_are_the_published_ones(name: str, shape: tuple[int, int, int], total: int) -> None:
    assert relu_total(build_network(name, None, 10, shape)) == total


def test_resnet18_layers_are_the_published_ones() -> None:
    counts = list(layer_counts(build_network("resnet18", None, 10, (3, 32, 32))).values())
    assert counts == [65_536] * 4 + [32_768] * 4 + [16_384] * 4 + [8_192] * 4


def test_wrn22_layers_are_the_published_ones() -> None:
    counts = list(layer_counts(build_network("wrn22", None, 10, (3, 32, 32))).values())
    group1 = [16_384] + [131_072] * 5
    group2 = [131_072] + [65_536] * 5
    group3 = [65_536] + [32_768] * 5
    assert counts == group1 + group2 + group3


def test_width_multiplies_all_stages() -> None:
    assert relu_total(build_network("resnet18", 16, 10, (3, 32, 32))) * 4 == 491_520


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("wrn22", 1)])
def test_networks_trace_to_the_documented_operators(name: str, width: int) -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
            return isinstance(module, ALLOWED)

    model = build_network(name, width, 10, (3, 32, 32))
    graph = Tracer().trace(model)
    assert all(
        isinstance(model.get_submodule(node.target), ALLOWED) for node in graph.nodes if node.op == "call_module"
    )
    functions = {node.target.__name__ for node in graph.nodes if node.op == "call_function"}
    assert functions == {"add", "flatten"}
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.fx.GraphModule(model, graph)(x), model(x))


def test_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    first = build_network("resnet18", 4, 10, (1, 8, 8), seed=7).state_dict()
    torch.manual_seed(2)
    again = build_network("resnet18", 4, 10, (1, 8, 8), seed=7).state_dict()
    other = build_network("resnet18", 4, 10, (1, 8, 8), seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_unknown_network_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"network\.name must be one of resnet18, wrn22, got 'vgg'"):
        build_network("vgg", None, 10, (3, 32, 32))
