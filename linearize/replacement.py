"""What a removed ReLU becomes where it is not the identity: a polynomial of its channel, trained with the weights.

Degree 1, a*x + b, is linear: secure inference compares nothing for it. Degree 2 is AutoReP's (Peng et al., ICCV 2023).

Legend: B batch, C channels, H and W rows and columns of an activation.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from linearize.data import Dataset
from linearize.errors import ConfigError
from linearize.relu_mask import MaskedReLU, masked_layers

_BATCH_SIZE = 256


def use_affine(model: nn.Module) -> None:
    """Give every masked ReLU of a network a trainable a*x + b a channel, the identity at first; in place."""
    for layer in masked_layers(model).values():
        assert layer.relu_mask is not None, "networks allocate every mask"
        ones = torch.ones(layer.relu_mask.shape[0], device=layer.relu_mask.device)
        layer.replacement = nn.Parameter(torch.stack([torch.zeros_like(ones), ones]))


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


def allocate_replacements(model: nn.Module, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
    """Make room for stored replacements, so that a state dict with tensors named *.replacement can be loaded."""
    layers = masked_layers(model)
    for name, shape in zip(names, shapes, strict=True):
        layer = layers.get(name.removesuffix(".replacement"))
        if layer is not None:
            layer.replacement = nn.Parameter(torch.zeros(tuple(shape)))


class _LocationAffine(nn.Module):
    """a * x + b with an a and a b for each location, written as a BatchNorm over flat features."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.shape = tuple(scale.shape)
        self.norm = _fixed_norm(nn.BatchNorm1d(scale.numel(), eps=0.0), scale.flatten(), shift.flatten())

    def forward(self, x: Tensor) -> Tensor:
        return torch.reshape(self.norm(torch.flatten(x, 1)), (-1, *self.shape))


def plain_layers(model: nn.Module) -> nn.Module:
    """A copy in eval mode, of the same function, in which no masked ReLU has a replacement: the form for export.

    Affine replacements become BatchNorms in front of their masked ReLU, which then makes its removed ReLUs the
    identity: one a channel where the layer kept none (an exporter can fold that into the convolution before it), one
    a location where it kept some. Raises ConfigError, naming the layer, for replacements of degree 2.
    """
    copied = copy.deepcopy(model).eval()
    for name, layer in masked_layers(copied).items():
        if layer.replacement is None:
            continue
        mask, coefficients = layer.relu_mask, layer.replacement.detach()
        layer.replacement = None
        assert mask is not None, "networks allocate every mask"
        if len(coefficients) > 2 and not mask.all():
            raise ConfigError(
                f"{name}: removed ReLUs became polynomials of degree {len(coefficients) - 1}, which secure inference "
                "cannot take; linearize with autorep.degree 1 or replacement affine"
            )
        if mask.all():
            continue
        shift, scale = coefficients[0], coefficients[1]
        affine: nn.Module
        if mask.any():
            ones = torch.ones(mask.shape, dtype=scale.dtype, device=scale.device)
            channel = (-1, *[1] * (mask.dim() - 1))
            affine = _LocationAffine(
                torch.where(mask, ones, scale.view(channel)), torch.where(mask, 0 * ones, shift.view(channel))
            )
        else:
            norm = nn.BatchNorm2d if mask.dim() == 3 else nn.BatchNorm1d
            affine = _fixed_norm(norm(len(scale), eps=0.0), scale, shift)
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, nn.Sequential(affine, layer).eval())
    return copied


def _fixed_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: Tensor, shift: Tensor) -> nn.Module:
    """A BatchNorm that is scale * x + shift: its running mean is 0 and its running variance 1."""
    norm.weight.data.copy_(scale)
    norm.bias.data.copy_(shift)
    return norm.to(scale.device).eval()
