"""Layer budgets from ReLU sensitivity: SENet-like (Kundu et al., ICLR 2023), not a reproduction of SENet.

SENet takes a layer's ReLU sensitivity from its pruning sensitivity: layers whose weights survive pruning for a small
network need their ReLUs least. Each layer's share of the budget is proportional to its sensitivity, and within a layer
those ReLUs stay that change their input most. SENet trains a sparse network to find its sensitivities and searches
positions over many epochs against the all-ReLU network, then adds attention transfer; here both come from the trained
baseline in one pass each, and the finetune is every method's. Weights stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from linearize.methods.activations import activation_differences
from linearize.methods.base import Task, sample_images
from linearize.relu_mask import MaskedReLU, get_relu_mask, keep_largest, layer_counts, masked_layers, set_relu_mask


def sensitivity(task: Task) -> dict[str, Any]:
    """Allocate the budget to layers, then keep the largest activation differences of each.

    Returns {"sensitivities"}: by layer name, from 0 to 1.
    """
    settings, context, model = task.config.sensitivity, task.context, task.model
    sensitivities = relu_sensitivities(model, context.data.input_shape, settings.density)
    counts = layer_counts(model)
    budgets = allocate(task.relu_budget, sensitivities, list(counts.values()))
    images = sample_images(task, settings.images, "sensitivity")
    differences = activation_differences(model, context.data, images)
    differences = differences.masked_fill(~get_relu_mask(model), -1)
    sizes = [layer.get_buffer("relu_mask").numel() for layer in masked_layers(model).values()]
    parts = torch.split(differences, sizes)
    kept = [keep_largest(part, budget) for part, budget in zip(parts, budgets, strict=True)]
    set_relu_mask(model, torch.cat(kept))
    return {"sensitivities": dict(zip(counts, sensitivities.tolist(), strict=True))}


def relu_sensitivities(model: nn.Module, input_shape: tuple[int, ...], density: float) -> Tensor:
    """One minus the share of weights before each masked ReLU that pruning by magnitude keeps; float64 [layers].

    Pruning keeps the `density` share of largest weights over all convolutions and linear layers that run before a
    masked ReLU; before a ReLU are those that run after the previous one.
    """
    groups = _weights_before(model, input_shape)
    magnitudes = torch.cat([weight.detach().abs().flatten() for group in groups for weight in group]).float().cpu()
    threshold = magnitudes.sort(descending=True).values[max(0, round(density * len(magnitudes)) - 1)]
    shares = []
    for group in groups:
        weights = torch.cat([weight.detach().abs().flatten() for weight in group]).cpu()
        shares.append(float((weights >= threshold).double().mean()))
    return 1 - torch.tensor(shares, dtype=torch.float64)


def _weights_before(model: nn.Module, input_shape: tuple[int, ...]) -> list[list[Tensor]]:
    """For each masked ReLU, in order, the weights that ran since the one before; those of its neighbour if none did."""
    groups: dict[nn.Module, list[Tensor]] = {}
    since: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, MaskedReLU):
            last = list(groups.values())[-1] if groups else []
            groups.setdefault(module, list(since) or last)
            since.clear()
        else:
            since.append(module.get_parameter("weight"))

    watched = [module for module in model.modules() if isinstance(module, MaskedReLU | nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(look) for module in watched]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *input_shape, device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return [groups[layer] for layer in masked_layers(model).values()]


def allocate(budget: int, weights: Tensor, capacities: list[int]) -> list[int]:
    """Whole shares of a budget in proportion to weights, float64 [L], none above its capacity; they add up to it.

    What a full layer cannot take goes to the others in proportion. budget must be at most the sum of capacities.
    """
    capacity = torch.tensor(capacities, dtype=torch.float64)
    weights = weights.double().clamp(min=1e-12)
    full = torch.zeros(len(capacities), dtype=torch.bool)
    while True:
        left = budget - float(capacity[full].sum())
        shares = torch.where(full, capacity, left * weights / weights[~full].sum().clamp(min=1e-12))
        over = ~full & (shares > capacity)
        if not over.any():
            break
        full |= over
    shares = shares.clamp(max=capacity)
    whole = shares.floor().long()
    remainders = torch.where(whole < capacity, shares - whole, -1.0)
    rest = budget - int(whole.sum())
    whole[remainders.argsort(descending=True, stable=True)[:rest]] += 1
    return [int(share) for share in whole]
