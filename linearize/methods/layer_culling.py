"""Whole layers without ReLUs: DeepReDuce-like (Jha et al., ICML 2021), not a reproduction of DeepReDuce.

DeepReDuce culls stages by a criticality for which it trains a network without each, thins what is left by every second
layer, and reshapes channels and resolution. Here a layer's criticality is how much the trained baseline's loss rises,
without any training, when that layer alone loses its ReLUs; the least critical layers, for each ReLU saved, are culled
as long as the budget allows; the next one is thinned to meet it: whole channels, the least active first, and the first
locations of one more. Nothing is reshaped, so channels and resolution stay. Weights stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linearize.data import Dataset
from linearize.methods.activations import activation_differences
from linearize.methods.base import Task, sample_images
from linearize.relu_mask import MaskedReLU, layer_counts, masked_layers, relu_count

_BATCH_SIZE = 256


def layer_culling(task: Task) -> dict[str, Any]:
    """Cull whole layers, then thin one. Starts from all ReLUs.

    Returns {"criticality", "culled", "thinned"}: rise of the loss a ReLU by layer name; names of layers, in order.
    """
    settings, context, model = task.config.layer_culling, task.context, task.model
    images = sample_images(task, settings.images, "layer culling")
    layers = masked_layers(model)
    differences = activation_differences(model, context.data, images)
    sizes = [layer.get_buffer("relu_mask").numel() for layer in layers.values()]
    by_layer = dict(zip(layers, torch.split(differences, sizes), strict=True))
    counts = layer_counts(model)
    loss = _mean_loss(model, context.data, images)
    criticality = {}
    for name, layer in layers.items():
        mask = layer.get_buffer("relu_mask")
        before = mask.clone()
        mask.fill_(False)
        criticality[name] = (_mean_loss(model, context.data, images) - loss) / counts[name]
        mask.copy_(before)
    culled, thinned = choose_layers(counts, criticality, task.relu_budget)
    for name in culled:
        layers[name].get_buffer("relu_mask").fill_(False)
    if thinned is not None:
        thin(layers[thinned], by_layer[thinned], relu_count(model) - task.relu_budget)
    return {"criticality": criticality, "culled": culled, "thinned": thinned}


def choose_layers(
    counts: dict[str, int], criticality: dict[str, float], relu_budget: int
) -> tuple[list[str], str | None]:
    """(layers to cull, layer to thin): the least critical first, none whose loss would go below the budget.

    The layer to thin is the least critical of those left; None where the budget is already met.
    """
    excess = sum(counts.values()) - relu_budget
    culled = []
    order = sorted(counts, key=lambda name: criticality[name])
    for name in order:
        if counts[name] <= excess:
            culled.append(name)
            excess -= counts[name]
    left = [name for name in order if name not in culled]
    return culled, left[0] if excess else None


def thin(layer: MaskedReLU, differences: Tensor, excess: int) -> None:
    """Remove `excess` ReLUs from a full layer: its least active channels, and the first locations of one more.

    differences: float [C * H * W], mean activation difference of each location.
    """
    mask = layer.get_buffer("relu_mask")
    channels = mask.shape[0]
    order = differences.view(channels, -1).mean(1).argsort(stable=True)
    per_channel = mask[0].numel()
    locations = (order[:, None] * per_channel + torch.arange(per_channel)).flatten()
    mask.view(-1)[locations[:excess].to(mask.device)] = False


@torch.no_grad()
def _mean_loss(model: nn.Module, data: Dataset, indices: Tensor) -> float:
    """Mean cross-entropy of some training images, in eval mode."""
    total = 0.0
    model.eval()
    for part in torch.split(indices, _BATCH_SIZE):
        logits = model(data.normalise(data.train.images[part]))
        total += float(F.cross_entropy(logits, data.train.labels[part], reduction="sum"))
    return total / len(indices)
