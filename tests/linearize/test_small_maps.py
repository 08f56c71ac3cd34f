import copy

import pytest
import torch
from torch import nn

from linearize.networks import build_network
from linearize.small_maps import OnePixelConv2d, use_one_pixel_products


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(3, 1, 1, 1), (3, 2, 1, 2), (1, 2, 0, 2), (3, 1, 0, 3), (2, 3, 1, 2)]
)
def test_one_pixel_product_equals_convolution_in_value_and_gradients(
    kernel: int, stride: int, padding: int, size: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding).double()
    model = nn.Sequential(copy.deepcopy(plain))
    use_one_pixel_products(model.float(), (3, size, size))
    assert isinstance(model[0], OnePixelConv2d)
    model.double()
    x = torch.randn(5, 3, size, size, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    expected, got = plain(x), model(x2)
    assert expected.shape[2:] == (1, 1)
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    torch.testing.assert_close(x2.grad, x.grad)
    torch.testing.assert_close(model[0].weight.grad, plain.weight.grad)
    torch.testing.assert_close(model[0].bias.grad, plain.bias.grad)


def test_only_one_pixel_layers_are_replaced_and_the_state_keeps_its_names() -> None:
    model = build_network("resnet18", 4, 10, (1, 8, 8))
    names, weight = list(model.state_dict()), model.get_parameter("layer4.1.conv1.weight")
    use_one_pixel_products(model, (1, 8, 8))
    replaced = [name for name, module in model.named_modules() if isinstance(module, OnePixelConv2d)]
    assert replaced == ["layer4.0.conv1", "layer4.0.conv2", "layer4.0.shortcut.0", "layer4.1.conv1", "layer4.1.conv2"]
    assert list(model.state_dict()) == names
    assert model.get_parameter("layer4.1.conv1.weight") is weight
    large = build_network("resnet18", 4, 10, (3, 32, 32))
    use_one_pixel_products(large, (3, 32, 32))
    assert not any(isinstance(module, OnePixelConv2d) for module in large.modules())
