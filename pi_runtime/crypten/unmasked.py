"""A linearized network as a CrypTen user runs it today: every ReLU layer compared whole, then multiplied by its mask.

``mask * relu(x) + (1 - mask) * x`` with a public mask is what a masked activation is in training code, and what a
converter makes of it. It compares every element of a layer, also those whose comparison is thrown away, so that
removing ReLUs saves nothing until a layer has lost all of them: such a layer is gone from the exported graph, here too.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from pi_runtime.crypten.crypten_graph import build_crypten_graph
from pi_runtime.crypten.library import import_crypten
from pi_runtime.graph import Graph

crypten = import_crypten()

from crypten.nn import Module  # noqa: E402 (after the import that makes it work)


class MaskedReLU(Module):  # type: ignore[misc]
    """[B, ...] -> the same shape; ``relu_mask`` is float32 of 0 and 1 in the shape of one image's activation."""

    def __init__(self, relu_mask: Tensor) -> None:
        super().__init__()
        # A plain attribute: CrypTen encrypts every tensor that is registered as a buffer, and this one is public.
        self.relu_mask = relu_mask

    def forward(self, x: Any) -> Any:
        return x.relu().mul(self.relu_mask).add(x.mul(1 - self.relu_mask))


def build_unmasked_graph(graph: Graph) -> Any:
    """As :func:`pi_runtime.crypten.crypten_graph.build_crypten_graph`, with its partly kept ReLU layers replaced."""
    model = build_crypten_graph(graph)
    for node in graph.relu_layers:
        if 0 < node.relu_count < prod(node.shape):
            relu_mask = torch.zeros(prod(node.shape))
            relu_mask[torch.tensor(node.kept)] = 1
            # In the place of the module of the same wire, which is what the graph calls it by.
            model._modules[node.output] = MaskedReLU(relu_mask.reshape(node.shape)).eval()
    return model
