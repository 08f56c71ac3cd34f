from collections.abc import Callable

import pytest
import torch
from torch import nn

from linearize.networks import build_network
from linearize.relu_mask import (
    MaskedReLU,
    get_relu_mask,
    harden,
    layer_counts,
    masked_layers,
    relax,
    relu_count,
    relu_total,
    set_relu_mask,
)

NETWORKS = [("resnet18", 4), ("wrn22", 1)]


def tiny(name: str, width: int) -> nn.Module:
    return build_network(name, width, 10, (1, 8, 8), seed=3)


def inputs(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class PlainReLU(nn.Module):
    """Stands in for a masked layer; of the same class name nowhere else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


def with_plain_relus(model: nn.Module) -> nn.Module:
    for name in masked_layers(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PlainReLU())
    return model


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_all_ones_equals_the_plain_relu_network_in_value_and_gradient(name: str, width: int) -> None:
    masked, plain = tiny(name, width), with_plain_relus(tiny(name, width))
    x = inputs(5, 0)
    expected, got = plain(x), masked(x)
    assert torch.equal(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for ours, theirs in zip(masked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_all_zeros_is_affine_in_the_input(name: str, width: int) -> None:
    model = tiny(name, width).double()
    set_relu_mask(model, torch.zeros(relu_total(model), dtype=torch.bool))
    a, b = inputs(4, 1).double(), inputs(4, 2).double()
    torch.testing.assert_close(model(0.3 * a + 0.7 * b), 0.3 * model(a) + 0.7 * model(b))
    set_relu_mask(model, torch.ones(relu_total(model), dtype=torch.bool))
    assert not torch.allclose(model(0.3 * a + 0.7 * b), 0.3 * model(a) + 0.7 * model(b))


def test_forward_equals_the_formula_at_every_location() -> None:
    layer = MaskedReLU((3, 4, 5))
    keep = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    set_relu_mask(layer, keep.reshape(-1))
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 0
    m = keep.float()
    assert torch.equal(layer(x), m * torch.relu(x) + (1 - m) * x)


def test_gradient_at_zero_is_that_of_relu_where_kept_and_one_elsewhere() -> None:
    layer = MaskedReLU((1, 1, 2))
    set_relu_mask(layer, torch.tensor([True, False]))
    x = torch.zeros(1, 1, 1, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_equal_those_of_a_selection_of_relu_or_identity(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 5, 5, generator=generator).to(dtype)
    x[:, :, 0] = 0.0
    x[0, 0, 1, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    layer = MaskedReLU((3, 5, 5))
    layer.relu_mask = torch.rand(3, 5, 5, generator=generator) < 0.5
    upstream = torch.randn(x.shape, generator=generator).to(dtype)

    def through(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        return output.detach(), torch.autograd.grad(output, leaf, upstream)[0]

    expected = through(lambda leaf: torch.where(layer.relu_mask, torch.relu(leaf), leaf))
    for ours, plain in zip(through(layer), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(layer(x), expected[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_counts_equal_a_brute_force_count_of_clamped_locations(name: str, width: int) -> None:
    """Oracle: a location is a ReLU if some input that arrives there negative leaves as 0, seen by hooks."""
    model = tiny(name, width)
    total = relu_total(model)
    kept = torch.rand(total, generator=torch.Generator().manual_seed(5)) < 0.3
    set_relu_mask(model, kept)
    clamped: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def look(module, args, output):
            clamped[name] = ((args[0] < 0) & (output == 0)).any(0)

        return look

    for layer_name, layer in masked_layers(model).items():
        layer.register_forward_hook(hook(layer_name))
        # The input of a layer is replaced by a negative one so that every kept location shows.
        layer.register_forward_pre_hook(lambda module, args: (-args[0].abs() - 1,))
    model(inputs(2, 4))
    brute_force = {layer_name: int(seen.sum()) for layer_name, seen in clamped.items()}
    assert layer_counts(model) == brute_force
    assert relu_count(model) == sum(brute_force.values()) == int(kept.sum())
    assert list(layer_counts(model)) == list(clamped), "order of definition is order of the forward pass"


def test_flat_mask_round_trips() -> None:
    model = tiny("resnet18", 4)
    kept = torch.rand(relu_total(model), generator=torch.Generator().manual_seed(6)) < 0.5
    set_relu_mask(model, kept)
    assert torch.equal(get_relu_mask(model), kept)


def test_soft_mask_equals_the_formula_and_hardens_to_what_is_given() -> None:
    layer = MaskedReLU((2, 1, 1))
    (soft,) = relax(layer)
    with torch.no_grad():
        soft.copy_(torch.tensor([0.25, -0.5]).reshape(2, 1, 1))
    x = torch.tensor([[-2.0, -2.0], [3.0, 3.0]]).reshape(2, 2, 1, 1)
    expected = soft * torch.relu(x) + (1 - soft) * x
    torch.testing.assert_close(layer(x), expected)
    harden(layer, torch.tensor([True, False]))
    assert layer(x).flatten().tolist() == [0.0, -2.0, 3.0, 3.0]
    assert list(layer.state_dict()) == ["relu_mask"]


def test_a_layer_without_mask_is_a_plain_relu() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert MaskedReLU()(x).tolist() == [0.0, 2.0]
    assert "no mask" in repr(MaskedReLU())
    assert "relu_count=6, relu_total=6" in repr(MaskedReLU((1, 2, 3)))
