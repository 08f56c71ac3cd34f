"""A small network with the operators that residual networks lack."""

from __future__ import annotations

import torch
from torch import nn


class OperatorsNet(nn.Module):
    """Dilation, groups, poolings with and without padding, concat, pad, slice: [B, 2, 9, 9] to [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(4, 4, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.max_pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.inner_mean = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.whole_mean = nn.AvgPool2d(2, stride=2)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.dilated(x))
        y = self.grouped(x)
        x = torch.cat([self.max_pool(y), self.inner_mean(y)], dim=1)
        x = nn.functional.pad(x, (1, 0, 1, 0))[:, ::2]
        x = self.norm(self.whole_mean(x))
        return self.fc(torch.flatten(x, 1))
