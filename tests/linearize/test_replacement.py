"""Polynomials in place of removed ReLUs: values, fit, training, files, export."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from linearize.checkpoint import load_checkpoint, save_checkpoint
from linearize.config import DataConfig, SgdConfig
from linearize.data import load_dataset
from linearize.errors import ConfigError
from linearize.networks import build_network
from linearize.progress import Reporter
from linearize.relu_mask import (
    MaskedReLU,
    get_relu_mask,
    masked_layers,
    polynomial,
    relax,
    relu_count,
    relu_total,
    set_relu_mask,
)
from linearize.replacement import gaussian_fit, plain_layers, use_affine, use_affine_locations, use_fitted_polynomials
from linearize.stage import StageContext
from linearize.train import cross_entropy, fit


def network(share: float = 0.5, name: str = "resnet18", width: int = 4) -> nn.Module:
    model = build_network(name, width, 10, (1, 8, 8), seed=1)
    rng = torch.Generator().manual_seed(2)
    set_relu_mask(model, torch.rand(relu_total(model), generator=rng) < share)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.5, 2.0, generator=rng)
    return model


def with_random_affine(model: nn.Module) -> nn.Module:
    use_affine(model)
    rng = torch.Generator().manual_seed(3)
    for layer in masked_layers(model).values():
        layer.replacement.data.add_(torch.randn(layer.replacement.shape, generator=rng) * 0.3)
    return model


def with_random_locations(model: nn.Module) -> nn.Module:
    use_affine_locations(model)
    rng = torch.Generator().manual_seed(3)
    for layer in masked_layers(model).values():
        for part in (layer.front_affine, layer.front_locations):
            part.data.add_(torch.randn(part.shape, generator=rng) * 0.05)
    return model


FRONTS = [with_random_affine, with_random_locations, lambda model: with_random_affine(with_random_locations(model))]


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("use", [use_affine, use_affine_locations])
def test_a_fresh_affine_is_the_identity_to_the_bit(use: Callable[[nn.Module], None]) -> None:
    model, other = network(), network()
    use(other)
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_equal_their_formula_by_channel(degree: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    coefficients = torch.randn(degree + 1, 3, generator=rng, dtype=torch.float64)
    expected = sum(coefficients[k][None, :, None, None] * x**k for k in range(degree + 1))
    torch.testing.assert_close(polynomial(x, coefficients), expected)


def test_kept_locations_are_relus_and_removed_ones_the_affine() -> None:
    layer = MaskedReLU((2, 1, 2))
    set_relu_mask(layer, torch.tensor([True, False, False, True]))
    use_affine(layer)
    layer.replacement.data.copy_(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    x = torch.tensor([[[[-2.0, -2.0]], [[4.0, -4.0]]]])
    assert layer(x).flatten().tolist() == [0.0, 2 * -2.0 + 1, 3 * 4.0 - 1, 0.0]


def test_every_location_has_its_own_affine_in_front_while_the_layer_keeps_a_relu() -> None:
    layer = MaskedReLU((2, 1, 2))
    set_relu_mask(layer, torch.tensor([True, False, False, True]))
    use_affine_locations(layer)
    layer.front_affine.data.copy_(torch.tensor([[1.0, -1.0], [2.0, 3.0]]))
    # What is trained here counts four times; b, then a.
    layer.front_locations.data.copy_(torch.tensor([[[[0.5, 0.0]], [[0.0, 0.0]]], [[[0.0, 0.25]], [[0.0, -0.75]]]]))
    x = torch.tensor([[[[-1.0, -2.0]], [[4.0, -4.0]]]])
    assert layer(x).flatten().tolist() == [2 * -1.0 + 3, 3 * -2.0 + 1, 3 * 4.0 - 1, 0.0]
    layer.relu_mask.fill_(False)
    assert layer(x).flatten().tolist() == [2 * -1.0 + 1, 2 * -2.0 + 1, 3 * 4.0 - 1, 3 * -4.0 - 1]


def test_soft_masks_mix_relu_and_polynomial() -> None:
    layer = MaskedReLU((1, 1, 2))
    use_affine(layer)
    layer.replacement.data.copy_(torch.tensor([[1.0], [2.0]]))
    (soft,) = relax(layer)
    soft.data.copy_(torch.tensor([[[0.25, 0.5]]]))
    x = torch.tensor([[[[-2.0, 4.0]]]])
    assert layer(x).flatten().tolist() == [0.75 * (2 * -2 + 1), 0.5 * 4 + 0.5 * (2 * 4 + 1)]


def test_straight_through_masks_are_binary_with_the_gradient_times_softplus() -> None:
    layer = MaskedReLU((1, 1, 2))
    set_relu_mask(layer, torch.tensor([True, False]))
    use_affine(layer)
    (soft,) = relax(layer, straight_through=True)
    soft.data.copy_(torch.tensor([[[0.3, -0.7]]]))
    x = torch.tensor([[[[-2.0, -3.0]]]])
    out = layer(x)
    assert out.flatten().tolist() == [0.0, -3.0]
    out.sum().backward()
    # d out / d m = relu(x) - x = 2 and 3.
    expected = torch.tensor([2.0, 3.0]) * torch.nn.functional.softplus(torch.tensor([0.3, -0.7]))
    torch.testing.assert_close(soft.grad.flatten(), expected)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.2, 2.0)])
def test_gaussian_fit_equals_least_squares_by_quadrature(degree: int, mean: float, std: float) -> None:
    """Oracle: weighted least squares on a fine grid of the Gaussian."""
    x = np.linspace(mean - 9 * std, mean + 9 * std, 200_001)
    weight = np.sqrt(np.exp(-(((x - mean) / std) ** 2) / 2))
    basis = np.stack([x**k for k in range(degree + 1)], 1)
    expected = np.linalg.lstsq(basis * weight[:, None], np.maximum(x, 0) * weight, rcond=None)[0]
    got = gaussian_fit(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64), degree)
    np.testing.assert_allclose(got[:, 0].numpy(), expected, atol=1e-6)


def test_polynomials_are_fitted_to_each_channels_mean_and_variance() -> None:
    data = load_dataset(DataConfig(limit=60), Reporter(quiet=True))
    model = network(share=1.0)
    indices = torch.arange(40)
    first = next(iter(masked_layers(model).values()))
    seen: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(data.normalise(data.train.images[indices]))
    hook.remove()
    x = seen[0].transpose(0, 1).flatten(1).detach()
    expected = gaussian_fit(x.mean(1), x.var(1, correction=0).sqrt(), 2)
    use_fitted_polynomials(model, data, indices, 2)
    torch.testing.assert_close(first.replacement.detach(), expected, atol=1e-4, rtol=1e-4)


def test_training_moves_the_affines_without_decaying_them(tmp_path: Path) -> None:
    data = load_dataset(DataConfig(limit=60), Reporter(quiet=True))
    context = StageContext(data, torch.device("cpu"), 0, tmp_path, Reporter(quiet=True))
    model = network(share=1.0)
    use_affine(model)
    settings = SgdConfig(epochs=1, batch_size=30, lr=0.1, weight_decay=0.5)
    fit(model, settings, context, stage="s", loss=cross_entropy, augmented=False, state=context.state("s"))
    for layer in masked_layers(model).values():
        assert layer.replacement[1].tolist() == [1.0] * layer.relu_mask.shape[0], (
            "all ReLUs kept: no gradient, no decay"
        )
    model = network(share=1.0)
    use_affine_locations(model)
    still = SgdConfig(epochs=1, batch_size=30, lr=1e-30, weight_decay=1e29)
    fit(model, still, context, stage="l", loss=cross_entropy, augmented=False, state=context.state("l"))
    assert all(
        torch.equal(layer.front_affine[1], torch.ones_like(layer.front_affine[1]))
        for layer in masked_layers(model).values()
    )
    model = network(share=0.1)
    use_affine(model)
    fit(model, settings, context, stage="t", loss=cross_entropy, augmented=False, state=context.state("t"))
    for layer in masked_layers(model).values():
        removed_somewhere = (~layer.relu_mask).flatten(1).any(1)
        assert torch.equal(layer.replacement[1] != 1, removed_somewhere)


@pytest.mark.parametrize("front", FRONTS)
def test_replacements_come_back_from_a_checkpoint(front: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = front(network())
    facts = {"network": "resnet18", "width": 4, "num_classes": 10, "input_shape": [1, 8, 8]}
    save_checkpoint(tmp_path / "a.safetensors", model, facts)
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(loaded(images()), model(images()))


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("wrn22", 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("front", FRONTS)
def test_plain_layers_are_the_same_function_and_the_same_masks(
    name: str, width: int, share: float, front: Callable[[nn.Module], nn.Module]
) -> None:
    model = front(network(share, name, width))
    plain = plain_layers(model)
    torch.testing.assert_close(plain(images()), model(images()), atol=1e-4, rtol=1e-4)
    assert torch.equal(get_relu_mask(plain), get_relu_mask(model))
    assert not any(list(layer.parameters()) for layer in masked_layers(plain).values())
    assert all(list(layer.parameters()) for layer in masked_layers(model).values()), "the given network stays"


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("front", FRONTS[:2])
def test_exported_affines_equal_torch(share: float, front: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """Oracle: the torch network; through ONNX Runtime and through this project's own reader."""
    from pi_runtime.export import build_onnx
    from pi_runtime.onnx_graph import read_onnx

    model = front(network(share))
    proto = build_onnx(plain_layers(model), (1, 8, 8))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images().numpy()})
    np.testing.assert_allclose(logits, model(images()).detach().numpy(), atol=1e-4, rtol=1e-4)
    graph = read_onnx(proto, origin="test")
    assert graph.relu_count == relu_count(model)
    if share == 0.0:
        left = [node.name for node in graph.nodes if node.op == "affine"]
        assert left == [f"layer{stage}.{block}.relu2.0" for stage in (1, 2, 3, 4) for block in (0, 1)], (
            "an affine a channel folds into the convolution before it; before relu2 stands an addition"
        )


def test_a_parabola_cannot_be_exported_and_the_layer_is_named() -> None:
    model = network()
    layer = next(iter(masked_layers(model).values()))
    layer.replacement = nn.Parameter(torch.zeros(3, 4))
    message = (
        r"layer1\.0\.relu1: removed ReLUs became polynomials of degree 2, .*autorep\.degree 1 or replacement affine"
    )
    with pytest.raises(ConfigError, match=message):
        plain_layers(model)
    layer.relu_mask.fill_(True)
    assert torch.equal(plain_layers(model)(images()), model(images())), "where nothing was removed it does not matter"
