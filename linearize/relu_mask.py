"""ReLUs with a binary mask: 1 keeps the ReLU at a location of the activation, 0 makes it the identity.

In place of the identity a removed ReLU may become a polynomial of its channel, and a*x + b may stand in front of the
ReLUs of a layer, kept or removed (see `linearize.replacement`).

Legend: B batch, C channels, H and W rows and columns of an activation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A location's own a and b move by this squared times as much in a step as they would by themselves: their gradients are
# those of one location, where a channel's are sums over all of them.
_LOCATION_FACTOR = 4.0

# Parameters of a masked ReLU that are trained with the weights, and not decayed towards zero.
TRAINED_PARTS = ("replacement", "front_affine", "front_locations")


def polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """The polynomial of each channel, by Horner's rule.

    x: float [B, C, ...]. coefficients: float [degree + 1, C], the constant first. Returns float [B, C, ...].
    """
    rows = coefficients.view(*coefficients.shape, *[1] * (x.dim() - 2)).unbind(0)
    value = rows[-1]
    for row in reversed(rows[:-1]):
        value = row + x * value
    return value


class MaskedReLU(nn.Module):
    """m * relu(x) + (1 - m) * r(x) with one binary m for each location, the same for all images.

    Without a shape it is a plain ReLU until `allocate` gives it a mask (see `linearize.networks`). `relu_mask` is a
    bool buffer [C, H, W]. r is the identity, or the polynomial of `replacement`, a float parameter [degree + 1, C].
    While `soft_mask`, a float parameter [C, H, W], is present (a search by gradients), it takes the place of the mask;
    with `straight_through` it only receives the gradient of m, times softplus of itself, and m stays binary.
    `front_affine`, a float parameter [2, C], and `front_locations`, one of [2, C, H, W], make a*x + b what all this is
    applied to; b comes first.
    """

    relu_mask: Tensor | None
    soft_mask: nn.Parameter | None
    replacement: nn.Parameter | None
    front_affine: nn.Parameter | None
    front_locations: nn.Parameter | None

    def __init__(self, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("relu_mask", None)
        self.register_parameter("soft_mask", None)
        for name in TRAINED_PARTS:
            self.register_parameter(name, None)
        self.straight_through = False
        if shape is not None:
            self.allocate(shape)

    def allocate(self, shape: Sequence[int]) -> None:
        """Give the layer an all-ones mask of an activation's shape [C, H, W]."""
        self.relu_mask = torch.ones(tuple(shape), dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        """x, float [B, C, H, W] -> the same shape and dtype."""
        x = self.before_relu(x)
        if self.soft_mask is not None:
            kept = self.relaxed_mask()
            if self.replacement is None:
                return x - kept * x.clamp(max=0)
            removed = polynomial(x, self.replacement)
            return removed + kept * (torch.relu(x) - removed)
        if self.relu_mask is None:
            return torch.relu(x)
        if self.replacement is not None:
            return torch.where(self.relu_mask, torch.relu(x), polynomial(x, self.replacement))
        if torch.is_grad_enabled() and x.requires_grad:
            return _KeptReLU.apply(x, self.relu_mask)  # type: ignore[no-any-return]
        return _rectified(x, self.relu_mask)

    def before_relu(self, x: Tensor) -> Tensor:
        """What the ReLUs are applied to: x, or a*x + b of it; the same shape and dtype."""
        if self.front_affine is None:
            return x
        shift, scale = self.front_map().to(x.dtype)
        return torch.addcmul(shift, x, scale)

    def front_map(self) -> Tensor:
        """b and a: float [2, C, H, W] where the layer keeps ReLUs, else [2, C, 1, 1], which a convolution takes in."""
        assert self.front_affine is not None, "only where there is one"
        mask = _mask(self)
        channels = self.front_affine.view(*self.front_affine.shape, *[1] * (mask.dim() - 1))
        if self.front_locations is None or not mask.any():
            return channels
        return channels + _LOCATION_FACTOR * self.front_locations

    def relaxed_mask(self) -> Tensor:
        """The mask in force while `soft_mask` is present, float [C, H, W], with its gradient."""
        assert self.soft_mask is not None, "only between relax and harden"
        if not self.straight_through:
            return self.soft_mask
        # The bracket is zero in value and one in gradient.
        return _mask(self) + F.softplus(self.soft_mask).detach() * (self.soft_mask - self.soft_mask.detach())

    def extra_repr(self) -> str:
        if self.relu_mask is None:
            return "no mask"
        degree = "" if self.replacement is None else f", replacement of degree {len(self.replacement) - 1}"
        return f"relu_count={int(self.relu_mask.sum())}, relu_total={self.relu_mask.numel()}{degree}"


def _rectified(x: Tensor, relu_mask: Tensor) -> Tensor:
    floor = torch.zeros(relu_mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~relu_mask, -torch.inf)
    return torch.maximum(x, floor)


class _KeptReLU(torch.autograd.Function):
    """relu(x) where the mask is 1, x elsewhere; the gradient at 0 is relu's.

    Only operations that have vectorized kernels: comparing and filling by a bool mask take a fifth of a training epoch
    on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, relu_mask: Tensor) -> Tensor:
        y = _rectified(x, relu_mask)
        ctx.save_for_backward(y, relu_mask)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y, relu_mask = ctx.saved_tensors
        # The gradient passes where this is above 0: everywhere but at kept ReLUs that gave 0.
        open_gate = torch.maximum(y, (~relu_mask).to(y.dtype))
        return torch.ops.aten.threshold_backward(gradient, open_gate, 0), None


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


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """bool [N]: the `count` largest of scores, float [N]; of equal ones the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:count].cpu()] = True
    return kept


def relax(model: nn.Module, *, straight_through: bool = False) -> list[nn.Parameter]:
    """Put a trainable real-valued mask, equal to the binary one, in its place; returns these parameters in order.

    straight_through: the binary masks stay in force, and the real ones only receive their gradients.
    """
    parameters = []
    for layer in masked_layers(model).values():
        layer.soft_mask = nn.Parameter(_mask(layer).float())
        layer.straight_through = straight_through
        parameters.append(layer.soft_mask)
    return parameters


def harden(model: nn.Module, relu_mask: Tensor) -> None:
    """Drop the real-valued masks and write the binary ones from one vector, bool [relu_total]."""
    for layer in masked_layers(model).values():
        layer.soft_mask = None
        layer.straight_through = False
    set_relu_mask(model, relu_mask)
