"""What a removed ReLU becomes where it is not the identity: a polynomial of its channel, trained with the weights.

Degree 1, a*x + b, is linear: secure inference compares nothing for it. Degree 2 is AutoReP's (Peng et al., ICCV 2023).

In front of a layer that keeps ReLUs an a and a b for each location cost no more than its replacements, which are one a
location when they are written out, as kept ReLUs lie among them. `use_affine_locations` trains them, for removed and
kept ReLUs; a layer that keeps none has one a channel, which a convolution can take in.

Legend: B batch, C channels, H and W rows and columns of an activation.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from linearize.data import Dataset
from linearize.errors import ConfigError
from linearize.relu_mask import TRAINED_PARTS, MaskedReLU, masked_layers

_BATCH_SIZE = 256


def use_affine(model: nn.Module) -> None:
    """Give every masked ReLU of a network a trainable a*x + b a channel, the identity at first; in place."""
    for layer in masked_layers(model).values():
        assert layer.relu_mask is not None, "networks allocate every mask"
        ones = torch.ones(layer.relu_mask.shape[0], device=layer.relu_mask.device)
        layer.replacement = nn.Parameter(torch.stack([torch.zeros_like(ones), ones]))


def use_affine_locations(model: nn.Module) -> None:
    """Put a trainable a*x + b in front of the ReLUs of every masked layer, the identity at first; in place.

    One a location where the layer keeps ReLUs, else one a channel: see `MaskedReLU.front_map`.
    """
    for layer in masked_layers(model).values():
        assert layer.relu_mask is not None, "networks allocate every mask"
        ones = torch.ones(layer.relu_mask.shape[0], device=layer.relu_mask.device)
        layer.front_affine = nn.Parameter(torch.stack([torch.zeros_like(ones), ones]))
        layer.front_locations = nn.Parameter(torch.zeros(2, *layer.relu_mask.shape, device=ones.device))


def gaussian_fit(mean: Tensor, std: Tensor, degree: int) -> Tensor:
    """The polynomial closest to relu(x) in mean square for a Gaussian x: float [degree + 1, C], the constant first.

    mean, std: float [C]. degree: 1 or 2. From the Hermite expansion of relu(mean + std * z): with t = mean / std, p the
    density and P the distribution function of a standard Gaussian at t, degree 1 is P * x + std * p, and degree 2 adds
    p / (2 * std) times ((x - mean)^2 - std^2).
    """
    t = mean / std
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    distribution = torch.special.ndtr(t)
    constant, slope = std * density, distribution
    if degree == 1:
        return torch.stack([constant, slope])
    curvature = density / (2 * std)
    return torch.stack([constant + curvature * (mean.square() - std.square()), slope - 2 * mean * curvature, curvature])


@torch.no_grad()
def use_fitted_polynomials(model: nn.Module, data: Dataset, indices: Tensor, degree: int) -> None:
    """Give every masked ReLU a trainable polynomial a channel, fitted to what arrives there; in place.

    indices: int64 [M], the training images on which mean and variance of each channel are measured, in eval mode.
    """
    layers = list(masked_layers(model).values())
    sums = [torch.zeros(3, 1) for _ in layers]

    def watch(number: int, layer: MaskedReLU) -> torch.utils.hooks.RemovableHandle:
        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1).double()
            row = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
            sums[number] = sums[number].to(row) + row

        return layer.register_forward_pre_hook(look)

    hooks = [watch(number, layer) for number, layer in enumerate(layers)]
    model.eval()
    for part in torch.split(indices.to(data.train.images.device), _BATCH_SIZE):
        model(data.normalise(data.train.images[part]))
    for hook in hooks:
        hook.remove()
    for layer, (count, total, squares) in zip(layers, sums, strict=True):
        mean = total / count
        # A channel that never varies has no slope to fit; a small deviation gives it that of its sign.
        std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
        layer.replacement = nn.Parameter(gaussian_fit(mean, std, degree).float())


def allocate_parts(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Make room for what masked ReLUs have beside their masks, so that a state dict of these shapes can be loaded."""
    layers = masked_layers(model)
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        if part in TRAINED_PARTS and layer in layers:
            setattr(layers[layer], part, nn.Parameter(torch.zeros(tuple(shape))))


class _LocationAffine(nn.Module):
    """a * x + b with an a and a b for each location, written as a BatchNorm over flat features."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.shape = tuple(scale.shape)
        self.norm = _fixed_norm(nn.BatchNorm1d(scale.numel(), eps=0.0), scale.flatten(), shift.flatten())

    def forward(self, x: Tensor) -> Tensor:
        return torch.reshape(self.norm(torch.flatten(x, 1)), (-1, *self.shape))


def plain_layers(model: nn.Module) -> nn.Module:
    """A copy in eval mode, of the same function, whose masked ReLUs are nothing but masked ReLUs: the form for export.

    What they had beside their masks becomes BatchNorms in front of them: one a channel where the layer kept none (an
    exporter can fold that into the convolution before it), one a location where it kept some. Raises ConfigError,
    naming the layer, for replacements of degree 2.
    """
    copied = copy.deepcopy(model).eval()
    for name, layer in masked_layers(copied).items():
        norms = [_as_norm(part) for part in (_front(layer), _replacement(layer, name)) if part is not None]
        for part in TRAINED_PARTS:
            setattr(layer, part, None)
        if norms:
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, nn.Sequential(*norms, layer).eval())
    return copied


def _front(layer: MaskedReLU) -> Tensor | None:
    """b and a of what stands in front of the layer, float [2, C, 1, 1] or [2, C, H, W]."""
    return None if layer.front_affine is None else layer.front_map().detach()


def _replacement(layer: MaskedReLU, name: str) -> Tensor | None:
    """b and a that make a replacement of the identity, which a removed ReLU is then, and leave kept ReLUs alone."""
    mask = layer.relu_mask
    assert mask is not None, "networks allocate every mask"
    if layer.replacement is None or mask.all():
        return None
    coefficients = layer.replacement.detach()
    if len(coefficients) > 2:
        raise ConfigError(
            f"{name}: removed ReLUs became polynomials of degree {len(coefficients) - 1}, which secure inference "
            "cannot take; linearize with autorep.degree 1 or replacement affine"
        )
    channels = coefficients.view(*coefficients.shape, *[1] * (mask.dim() - 1))
    if not mask.any():
        return channels
    kept = torch.tensor([0.0, 1.0], dtype=channels.dtype, device=channels.device).view(2, *[1] * mask.dim())
    return torch.where(mask, kept, channels)


def _as_norm(shift_and_scale: Tensor) -> nn.Module:
    shift, scale = shift_and_scale
    if scale.numel() > len(scale):
        return _LocationAffine(scale, shift)
    norm = nn.BatchNorm2d if scale.dim() == 3 else nn.BatchNorm1d
    return _fixed_norm(norm(len(scale), eps=0.0), scale.flatten(), shift.flatten())


def _fixed_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> nn.Module:
    """A BatchNorm that is scale * x + shift: its running mean is 0 and its running variance 1."""
    norm.weight.data.copy_(scale)
    norm.bias.data.copy_(shift)
    return norm.to(scale.device).eval()
