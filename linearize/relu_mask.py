"""ReLUs with a binary mask: 1 keeps the ReLU at a location of the activation, 0 makes it the identity.

Legend: B batch, C channels, H and W rows and columns of an activation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaskedReLU(nn.Module):
    """m * relu(x) + (1 - m) * x with one binary m for each location, the same for all images.

    Without a shape it is a plain ReLU until `allocate` gives it a mask (see `linearize.networks`). `relu_mask` is a
    bool buffer [C, H, W]. While `soft_mask`, a float parameter [C, H, W], is present (SNL's mask phase), it takes its
    place.
    """

    relu_mask: Tensor | None
    soft_mask: nn.Parameter | None

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("relu_mask", None)
        self.register_parameter("soft_mask", None)
        if shape is not None:
            self.allocate(shape)

    def allocate(self, shape: Sequence[int]) -> None:
        """Give the layer an all-ones mask of an activation's shape [C, H, W]."""
        self.relu_mask = torch.ones(tuple(shape), dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """x, float [B, C, H, W] -> the same shape and dtype."""
        if self.soft_mask is not None:
            return x - self.soft_mask * x.clamp(max=0)
        if self.relu_mask is None:
            return torch.relu(x)
        # One elementwise pass; equal to relu, gradient at 0 included, where the mask is 1.
        return x.masked_fill(self.relu_mask & (x <= 0), 0)

    def extra_repr(self) -> str:
        if self.relu_mask is None:
            return "no mask"
        return f"relu_count={int(self.relu_mask.sum())}, relu_total={self.relu_mask.numel()}"


def masked_layers(model: nn.Module) -> dict[str, MaskedReLU]:
    """All masked ReLU layers by module name, in order of definition (which is the order of the forward pass)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedReLU)}


def _mask(layer: MaskedReLU) -> Tensor:
    assert layer.relu_mask is not None, "networks allocate every mask"
    return layer.relu_mask


def layer_counts(model: nn.Module) -> dict[str, int]:
    """Kept ReLUs of each masked layer, by module name, in order."""
    return {name: int(_mask(layer).sum()) for name, layer in masked_layers(model).items()}


def relu_count(model: nn.Module) -> int:
    """ReLUs kept in the whole network."""
    return sum(layer_counts(model).values())


def relu_total(model: nn.Module) -> int:
    """ReLU locations of the whole network, kept or not."""
    return sum(_mask(layer).numel() for layer in masked_layers(model).values())


def get_relu_mask(model: nn.Module) -> Tensor:
    """All masks as one vector, bool [relu_total], layers in order, each flattened over C, H, W; on the CPU."""
    return torch.cat([_mask(layer).reshape(-1) for layer in masked_layers(model).values()]).cpu()


def set_relu_mask(model: nn.Module, relu_mask: Tensor) -> None:
    """Write all masks from one vector, bool [relu_total], in the order of `get_relu_mask`."""
    masks = [_mask(layer) for layer in masked_layers(model).values()]
    parts = torch.split(relu_mask, [mask.numel() for mask in masks])
    for mask, part in zip(masks, parts, strict=True):
        mask.copy_(part.reshape(mask.shape))


def relax(model: nn.Module) -> list[nn.Parameter]:
    """Put a trainable real-valued mask, equal to the binary one, in its place; returns these parameters in order."""
    parameters = []
    for layer in masked_layers(model).values():
        layer.soft_mask = nn.Parameter(_mask(layer).float())
        parameters.append(layer.soft_mask)
    return parameters


def harden(model: nn.Module, relu_mask: Tensor) -> None:
    """Drop the real-valued masks and write the binary ones from one vector, bool [relu_total]."""
    for layer in masked_layers(model).values():
        layer.soft_mask = None
    set_relu_mask(model, relu_mask)
