"""A trained indicator with hysteresis, and polynomials for removed ReLUs: AutoReP (Peng et al., ICCV 2023) in idea.

Behind every ReLU stands a real number, trained with the weights. The ReLU is removed when its number falls below minus
the hysteresis and comes back when it rises above it; backward, the indicator's gradient goes to the number, times
softplus of it. Removed ReLUs are a polynomial of degree 1 or 2 a channel, at first the best one for a Gaussian of the
mean and variance that arrive there. The loss is cross-entropy, distillation and a penalty on the share of kept ReLUs
above the budget's.

Departures from the authors' program: polynomials are fitted once, before the first step, not again during the first
hundreds; the square has no scale of its own; the count is made exact at the end by the largest numbers (theirs accepts
up to 2,000 ReLUs more than asked for, and picks the epoch on test images).
"""

from typing import Any

import torch
from torch import Tensor

from linearize.data import Batch, batches_per_epoch, training_batches
from linearize.methods.base import Task, sample_images
from linearize.relu_mask import (
    get_relu_mask,
    harden,
    keep_largest,
    masked_layers,
    relax,
    relu_count,
    relu_total,
)
from linearize.replacement import use_fitted_polynomials
from linearize.rng import generator
from linearize.train import distilled, learning_rate_factor, restore, snapshot, train_epoch


def autorep(task: Task) -> dict[str, Any]:
    """Train indicator, polynomials and weights together, then keep the relu_budget ReLUs with the largest numbers.

    Returns {"mask_epochs"}: a record each, with relu_count.
    """
    settings, context, model = task.config.autorep, task.context, task.model
    use_fitted_polynomials(model, context.data, sample_images(task, settings.images, "autorep images"), settings.degree)
    numbers = relax(model, straight_through=True)
    rng = generator(context.seed, "autorep numbers")
    for number in numbers:
        number.data.copy_(torch.rand(number.shape, generator=rng))
    known = {id(number) for number in numbers}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in known]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": numbers}])
    state = context.state("autorep")
    saved = state.load()
    history: list[dict[str, Any]] = []
    if saved is not None:
        restore(model, optimizer, saved[0])
        history = saved[1]["history"]
    layers = list(masked_layers(model).values())
    total = relu_total(model)
    imitate = distilled(task.teacher, settings.kd_weight, settings.kd_temperature)
    steps = batches_per_epoch(context.data, settings.batch_size)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        kept = torch.stack([layer.relaxed_mask().sum() for layer in layers]).sum()
        excess = (kept - task.relu_budget) / total
        return imitate(logits, batch) + settings.density_weight * excess.clamp(min=0)

    @torch.no_grad()
    def switch(step: int) -> bool:
        for layer, number in zip(layers, numbers, strict=True):
            mask = layer.get_buffer("relu_mask")
            mask.copy_(hysteresis(mask, number, settings.hysteresis))
        return False

    with context.reporter.task("autorep", settings.epochs) as progress:
        progress.advance(len(history))
        for epoch in range(len(history), settings.epochs):

            def set_lr(step: int, epoch: int = epoch) -> None:
                factor = learning_rate_factor("cosine", (epoch * steps + step) / (settings.epochs * steps))
                for group, lr in zip(optimizer.param_groups, (settings.lr, settings.mask_lr), strict=True):
                    group["lr"] = lr * factor

            batches = training_batches(
                context.data, settings.batch_size, settings.augment, generator(context.seed, "autorep", epoch)
            )
            result = train_epoch(
                model, optimizer, batches, loss, before_step=set_lr, after_step=switch, autocast=context.autocast()
            )
            record = {"epoch": epoch, "loss": result.loss, "train_accuracy": result.train_accuracy}
            history.append({**record, "relu_count": relu_count(model)})
            state.save(snapshot(model, optimizer), {"history": history})
            progress.advance()
            progress.say(
                f"epoch {epoch + 1}, train accuracy {result.train_accuracy:.2f} %, {relu_count(model):,} ReLUs"
            )
    _make_exact(task, numbers)
    return {"mask_epochs": history}


def hysteresis(kept: Tensor, numbers: Tensor, width: float) -> Tensor:
    """The indicator after a step: bool, of the shape of kept (bool) and numbers (float)."""
    return torch.where(kept, numbers >= -width, numbers > width)


def _make_exact(task: Task, numbers: list[torch.nn.Parameter]) -> None:
    """Keep the budget's number of ReLUs: the largest numbers, those kept at present before all others."""
    model = task.model
    flat = torch.cat([number.detach().flatten() for number in numbers]).cpu().double()
    present = get_relu_mask(model)
    lift = float(flat.max() - flat.min()) + 1
    kept = keep_largest(flat + lift * present, task.relu_budget)
    harden(model, kept)
