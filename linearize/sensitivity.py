"""What each ReLU is worth to first order, for every location of a network at once, from backward passes.

A ReLU with input x that becomes the identity adds min(x, 0) to its output, so the loss of an image changes by about
grad_out * min(x, 0): the ReLU's worth for that image, the higher the dearer. Where the ReLU has been removed already,
the same product is what giving it back would save. In eval mode images do not mix, so one backward pass of the summed
loss gives every image's own product. (Where a removed ReLU becomes a polynomial, that minus relu(x) takes the place of
min(x, 0).)

Taylor criterion: Molchanov et al., arXiv 1611.06440, there for channels. Legend: B images of a batch, C channels, H and
W rows and columns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linearize.data import Batch, Dataset
from linearize.relu_mask import MaskedReLU, masked_layers, polynomial
from linearize.train import Teacher, distillation_loss

Statistic = Literal["rms", "absolute", "signed"]
SensitivityLoss = Literal["cross_entropy", "distill"]

# What an image contributes to the sum, and what becomes of the mean.
_TERMS: dict[Statistic, Callable[[Tensor], Tensor]] = {
    "rms": torch.square,
    "absolute": torch.abs,
    "signed": lambda x: x,
}


def relu_scores(
    model: nn.Module,
    data: Dataset,
    images: int,
    *,
    statistic: Statistic,
    loss: SensitivityLoss,
    teacher: Teacher | None = None,
    temperature: float = 4.0,
    batch_size: int = 128,
    rng: torch.Generator,
) -> Tensor:
    """Score every ReLU location, kept or removed, by its first-order worth over training images.

    images: how many, drawn by rng (CPU generator) without replacement and not augmented; at most all of them.
    statistic over images: root mean square, mean of absolute values, or mean with sign (positive: the loss is higher
    without the ReLU). loss: of an image; distill is the distillation loss alone, at `temperature`, from `teacher`.
    Returns float64 [relu_total] on the CPU, in the order of `get_relu_mask`. The network is left as it was: weights,
    gradients, running statistics, mode.
    """
    if (loss == "distill") != (teacher is not None):
        raise ValueError(f"teacher must be given with loss 'distill' and only then, got loss {loss!r}")
    split = data.train
    chosen = torch.randperm(len(split), generator=rng)[:images].sort().values.to(split.labels.device)
    layers = list(masked_layers(model).values())
    sums = [torch.zeros(_locations(layer), dtype=torch.float64) for layer in layers]
    with _eval_mode(model), torch.enable_grad():
        for indices in torch.split(chosen, batch_size):
            batch = Batch(data.normalise(split.images[indices]), split.labels[indices], indices, augmented=False)
            for total, product in zip(
                sums, _products(model, layers, batch, _summed(teacher, temperature)), strict=True
            ):
                total += _TERMS[statistic](product).sum(0).flatten().double().cpu()
    mean = torch.cat(sums) / len(chosen)
    return mean.sqrt() if statistic == "rms" else mean


def _summed(teacher: Teacher | None, temperature: float) -> Callable[[Tensor, Batch], Tensor]:
    """The loss of a batch, summed over its images."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        if teacher is None:
            return F.cross_entropy(logits, batch.labels, reduction="sum")
        return distillation_loss(logits, teacher.logits(batch), temperature) * len(logits)

    return loss


def _products(
    model: nn.Module, layers: Sequence[MaskedReLU], batch: Batch, loss: Callable[[Tensor, Batch], Tensor]
) -> list[Tensor]:
    """grad_out times the change at each layer, float [B, C, H, W]; summed over the calls of a layer called twice."""
    calls: list[tuple[int, Tensor, Tensor]] = []

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda layer, inputs, output: calls.append((number, inputs[0], output))

    hooks = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(layers)]
    try:
        # A leaf that needs a gradient, so that the activations have one even if no weight does.
        value = loss(model(batch.inputs.requires_grad_()), batch)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(value, [output for _, _, output in calls], materialize_grads=True)
    products: list[Tensor | None] = [None] * len(layers)
    for (number, inputs, _), gradient in zip(calls, gradients, strict=True):
        product = gradient * change_if_removed(layers[number], inputs.detach())
        before = products[number]
        products[number] = product if before is None else before + product
    return [product for product in products if product is not None]


def change_if_removed(layer: MaskedReLU, x: Tensor) -> Tensor:
    """What the output gains where a ReLU is removed, float [B, C, H, W]. x: the layer's input."""
    with torch.no_grad():
        x = layer.before_relu(x)
    if layer.replacement is None:
        return x.clamp(max=0)
    return polynomial(x, layer.replacement.detach()) - torch.relu(x)


def _locations(layer: nn.Module) -> int:
    return layer.get_buffer("relu_mask").numel()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
