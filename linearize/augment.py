"""Augmentation of whole batches as one gather. Legend: B images, C channels, H and W rows and columns."""

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, *, padding: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Crop each image at a random place of itself padded with zeros, and mirror half of them.

    images: uint8 [B, C, H, W] on any device. padding: pixels on each side. rng: CPU generator.
    Returns uint8 [B, C, H, W].
    """
    batch, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, 2 * padding + 1, (batch, 1), generator=rng).to(device)
    left = torch.randint(0, 2 * padding + 1, (batch, 1), generator=rng).to(device)
    mirrored = torch.rand(batch, 1, generator=rng).to(device) < (0.5 if flip else 0.0)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    padded = F.pad(images, (padding,) * 4)
    image = torch.arange(batch, device=device)[:, None, None]
    cropped = padded[image, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
