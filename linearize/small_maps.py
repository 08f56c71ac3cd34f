"""Convolutions onto a single pixel, as one matrix product.

At 8x8 images the last stage of a ResNet has 1x1 maps: a padded 3x3 kernel then multiplies zeros with all but a few of
its taps, and oneDNN's backward pass of it runs at 5 GFLOP/s on 2 cores that reach 60 elsewhere (116 ms for 512 channels
and 64 images). Four such layers were two thirds of a training step.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OnePixelConv2d(nn.Conv2d):
    """A convolution whose output map is 1x1: only the taps that meet the input map take part.

    Legend: B batch, C input channels, K output channels, H and W rows and columns of the input map.
    """

    def forward(self, input: Tensor) -> Tensor:
        """float [B, C, H, W] -> float [B, K, 1, 1]."""
        top, left = map(int, self.padding)
        rows, columns = self.kernel_size
        met = input[:, :, : rows - top, : columns - left]
        height, width = met.shape[2:]
        taps = self.weight[:, :, top : top + height, left : left + width]
        return F.linear(met.flatten(1), taps.flatten(1), self.bias)[:, :, None, None]


def use_one_pixel_products(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Replace, in place, every ungrouped convolution that makes 1x1 maps of an image [C, H, W]; parameters are shared.

    The result differs from the original in float32 rounding only. Names of parameters stay.
    """
    found: set[str] = set()

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[2:] == (1, 1):
            found.add(name)

    convolutions = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d
        and not isinstance(module.padding, str)
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    }
    hooks = [module.register_forward_hook(partial(look, name)) for name, module in convolutions.items()]
    device = next(model.parameters()).device
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, *input_shape, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    for name in found:
        old = convolutions[name]
        new = OnePixelConv2d(
            old.in_channels,
            old.out_channels,
            (old.kernel_size[0], old.kernel_size[1]),
            stride=(old.stride[0], old.stride[1]),
            padding=(int(old.padding[0]), int(old.padding[1])),
            bias=old.bias is not None,
            device="meta",
        )
        new.weight, new.bias = old.weight, old.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
