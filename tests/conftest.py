"""Small networks with ReLU masks, made here so that the runtime is tested without the training code."""

from __future__ import annotations

import os
from collections.abc import Callable

# One thread for this process and every one that a test starts: the networks are small, and OpenMP threads that wait for
# one another on busy cores make them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn


class MaskedReLU(nn.Module):
    """The form that the exporter looks for: a module with a ``relu_mask``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("relu_mask", torch.ones(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu_mask * torch.relu(x) + (1 - self.relu_mask) * x


class SmallResidualNet(nn.Module):
    """Convolution with BatchNorm, a strided residual block, a BatchNorm that cannot be folded, pooling, dense."""

    def __init__(self, channels: int = 1, side: int = 8, classes: int = 4) -> None:
        super().__init__()
        half = side // 2
        self.stem = nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.relu1 = MaskedReLU((6, side, side))
        self.conv1 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.relu2 = MaskedReLU((8, half, half))
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu3 = MaskedReLU((8, half, half))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.stem_norm(self.stem(x)))
        y = self.relu2(self.norm1(self.conv1(x)))
        y = self.conv2(y) + self.shortcut(x)
        y = self.relu3(self.norm2(y))
        return self.fc(torch.flatten(self.pool(y), 1))


def settle_batch_norm(model: nn.Module) -> None:
    """Statistics and slopes that a wrong fold would not survive."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def keep_random(model: nn.Module, fraction: float, generator: torch.Generator) -> int:
    """Keeps each ReLU with probability ``fraction`` (0 and 1 are exact); returns how many are kept."""
    kept = 0
    for module in model.modules():
        if isinstance(module, MaskedReLU):
            module.relu_mask.copy_((torch.rand(module.relu_mask.shape, generator=generator) < fraction).float())
            kept += int(module.relu_mask.sum())
    return kept


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    """``make_net(fraction=1.0, seed=0)``: a small residual network in eval mode with random masks."""

    def make(fraction: float = 1.0, seed: int = 0, **shape: int) -> nn.Module:
        torch.manual_seed(seed)
        model = SmallResidualNet(**shape).eval()
        settle_batch_norm(model)
        keep_random(model, fraction, torch.Generator().manual_seed(seed))
        return model

    return make
