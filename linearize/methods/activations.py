"""How much each ReLU changes what passes through it, over training images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from linearize.data import Dataset
from linearize.relu_mask import masked_layers

_BATCH_SIZE = 256


@torch.no_grad()
def activation_differences(model: nn.Module, data: Dataset, indices: Tensor) -> Tensor:
    """The mean of |x - relu(x)| over images at every ReLU location, in eval mode.

    indices: int64 [M], of the training images, not augmented. Returns float64 [relu_total] on the CPU, in the order of
    `get_relu_mask`. Leaves the network in eval mode.
    """
    layers = list(masked_layers(model).values())
    sums = [torch.zeros(layer.get_buffer("relu_mask").numel(), dtype=torch.float64) for layer in layers]

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            sums[number] += (-inputs[0].clamp(max=0)).sum(0).flatten().double().cpu()

        return look

    hooks = [layer.register_forward_pre_hook(watch(number)) for number, layer in enumerate(layers)]
    model.eval()
    for part in torch.split(indices, _BATCH_SIZE):
        model(data.normalise(data.train.images[part]))
    for hook in hooks:
        hook.remove()
    return torch.cat(sums) / len(indices)
