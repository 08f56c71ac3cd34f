"""ResNet18 and WRN-22 in the geometry that SNL, BCD and AutoReP count ReLUs in, with a mask on every ReLU.

ResNet18: 3x3 stem at stride 1 without ReLU and without max-pool; basic blocks 2-2-2-2 at strides 1, 2, 2, 2,
projection shortcuts; a ReLU after bn1 and after the addition: 16 masks, 491,520 locations at 32x32 and width 64.
WRN-22 (Wide Residual Networks, arXiv 1605.07146): pre-activation, 3 groups of 3 blocks, a projection reads the
activated input; no ReLU after the last BatchNorm: 18 masks, 1,359,872 locations at 32x32 and widen factor 8.

Control flow is static, so that torch.fx traces both.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from linearize.errors import ConfigError
from linearize.relu_mask import MaskedReLU, masked_layers
from linearize.rng import generator
from linearize.user_models import build_user_network, is_spec, load_weights

DEFAULT_WIDTH = {"resnet18": 64, "wrn22": 8}


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus the (projected) input, relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = MaskedReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.relu2 = MaskedReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet18 for small images; `width` channels in the first stage, doubled in each later one."""

    def __init__(self, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv3x3(channels, width)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images, float [B, C, H, W] -> logits [B, num_classes]."""
        out = self.bn(self.conv(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(torch.flatten(self.pool(out), 1))  # type: ignore[no-any-return]


class PreActivationBlock(nn.Module):
    """bn-relu-conv-bn-relu-conv, plus the input, or plus a projection of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = MaskedReLU()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = MaskedReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class WideResNet22(nn.Module):
    """WRN-22-`width`: 16 stem channels, groups of 16, 32 and 64 times `width` channels."""

    def __init__(self, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv3x3(channels, 16)
        self.block1 = self._group(16, 16 * width, 1)
        self.block2 = self._group(16 * width, 32 * width, 2)
        self.block3 = self._group(32 * width, 64 * width, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * width, num_classes)

    @staticmethod
    def _group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        blocks = [PreActivationBlock(inputs, outputs, stride)]
        blocks += [PreActivationBlock(outputs, outputs, 1) for _ in range(2)]
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Images, float [B, C, H, W] -> logits [B, num_classes]."""
        out = self.bn(self.block3(self.block2(self.block1(self.conv(x)))))
        return self.linear(torch.flatten(self.pool(out), 1))  # type: ignore[no-any-return]


_NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {"resnet18": ResNet18, "wrn22": WideResNet22}


def allocate_masks(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Give every MaskedReLU an all-ones mask of the shape that a dry run of one image [C, H, W] shows."""
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: module.allocate(inputs[0].shape[1:]))
        for layer in masked_layers(model).values()
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, *input_shape))
    model.train(training)
    for hook in hooks:
        hook.remove()


def _initialise(model: nn.Module, seed: int) -> None:
    rng = generator(seed, "weights")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_network(
    name: str,
    width: int | None,
    num_classes: int,
    input_shape: Sequence[int],
    *,
    seed: int = 0,
    weights: Path | None = None,
) -> nn.Module:
    """A freshly initialised network (Kaiming normal) with all-ones masks, in eval mode, on the CPU.

    name: resnet18 or wrn22, or a network of the user's (`linearize.user_models`), which initialises itself.
    width: channels of the first stage (resnet18) or widen factor (wrn22); None takes 64 and 8.
    input_shape: [C, H, W] of an image. weights: safetensors file to fill it from.
    Raises ConfigError for an unknown name, NetworkError and CheckpointError as `linearize.user_models` says.
    """
    if is_spec(name):
        return build_user_network(name, num_classes, input_shape, seed=seed, weights=weights)
    if name not in _NETWORKS:
        raise ConfigError(f"network.name must be one of {', '.join(_NETWORKS)}, got {name!r}")
    width = DEFAULT_WIDTH[name] if width is None else width
    model = _NETWORKS[name](width, num_classes, input_shape[0])
    _initialise(model, seed)
    allocate_masks(model, input_shape)
    if weights is not None:
        load_weights(model, weights)
    return model.eval()
