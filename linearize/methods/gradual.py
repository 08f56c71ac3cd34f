"""A gradual descent: while the network trains, its mask follows what each ReLU is worth, and shrinks to the budget.

Scores cost no passes of their own. A backward pass of training gives grad_out * min(x, 0) at every location, kept or
removed (see `linearize.sensitivity`); the exponential moving average of its square over gradient steps ranks them all.
A mask update keeps the locations of highest worth, so ReLUs that have become worth more come back and others leave:
the exchange of a coordinate descent, many times an epoch, with weights that have got used to the last one.

A layer without ReLUs costs secure inference no round trip. `gradual.most_layers` keeps ReLUs in so many layers only: on
the first half of the way down one layer after the other is closed, always the one whose ReLUs would be worth least if
the budget were met at once, so that the others take over its work before the next is chosen.

Related: gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878) has the schedule; RigL (Evci et al., arXiv
1911.11134) gives connections back by gradient. Both are about weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from linearize.config import GradualConfig
from linearize.data import batches_per_epoch
from linearize.errors import ConfigError
from linearize.finetune import finetune
from linearize.methods.base import Task
from linearize.relu_mask import MaskedReLU, get_relu_mask, keep_largest, masked_layers, relu_count, set_relu_mask
from linearize.sensitivity import change_if_removed

# The share of the way down after which only `gradual.most_layers` are open.
_CLOSED_AT = 0.5


def gradual(task: Task) -> dict[str, Any]:
    """Train for `gradual.finetune.epochs` while the mask shrinks to the budget.

    Returns {"epochs"}: a record each, with loss, train_accuracy in percent, relu_count, and given_back: ReLUs that the
    epoch's updates brought back. Raises ConfigError for a training of no epochs, or layers too few for the budget.
    """
    settings, context = task.config.gradual, task.context
    if settings.finetune.epochs < 1:
        raise ConfigError(
            "gradual.finetune.epochs must be at least 1, as the mask follows that training, got 0; raise it"
        )
    sizes = [layer.get_buffer("relu_mask").numel() for layer in masked_layers(task.model).values()]
    if settings.most_layers is not None and (room := _largest(sizes, settings.most_layers)) < task.relu_budget:
        raise ConfigError(
            f"gradual.most_layers must leave room for relu_budget {task.relu_budget:,}, got {settings.most_layers}: "
            f"the largest {settings.most_layers} layers have {room:,} ReLUs; raise it"
        )
    steps = settings.finetune.epochs * batches_per_epoch(context.data, settings.finetune.batch_size)
    with MaskFollower(task.model, task.relu_budget, settings, steps) as follower:
        records = finetune(task.model, task.teacher, settings.finetune, context, stage="gradual", followers=[follower])
    return {"epochs": records}


def count_at(start: int, budget: int, progress: float, curve: float) -> int:
    """ReLUs to keep at a progress from 0 to 1: equal factors in equal times where curve is 1, else faster at first."""
    elapsed = 1 - math.pow(1 - min(progress, 1.0), curve)
    return round(start * math.pow(budget / start, elapsed))


class MaskFollower:
    """Goes along with a training (`linearize.train.Follower`): scores ReLUs in its backward passes, updates the mask.

    steps: gradient steps of the whole training. A context manager: it watches the network until it ends.
    """

    def __init__(self, model: nn.Module, budget: int, settings: GradualConfig, steps: int) -> None:
        self._model, self._budget, self._settings = model, budget, settings
        self._layers = list(masked_layers(model).values())
        self._start = relu_count(model)
        self._last_update = max(1, round(settings.share * steps))
        self._step = 0
        self._given_back = 0
        self._open = torch.ones(len(self._layers), dtype=torch.bool)
        self._worth = [torch.zeros(_shape(layer), device=_device(layer)) for layer in self._layers]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "MaskFollower":
        self._hooks = [layer.register_forward_hook(self._watch(number)) for number, layer in enumerate(self._layers)]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def after_step(self, model: nn.Module) -> None:
        self._step += 1
        if self._step <= self._last_update and (
            self._step % self._settings.update_every == 0 or self._step == self._last_update
        ):
            self._update()

    def after_epoch(self, model: nn.Module, record: dict[str, Any]) -> None:
        record |= {"relu_count": relu_count(model), "given_back": self._given_back}
        self._given_back = 0

    def tensors(self) -> dict[str, Tensor]:
        worths = {str(number): worth for number, worth in enumerate(self._worth)}
        return worths | {"step": torch.tensor(self._step), "open": self._open}

    def restore(self, tensors: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]) -> None:
        self._worth = [tensors[str(number)] for number in range(len(self._layers))]
        self._step = int(tensors["step"])
        self._open = tensors["open"].cpu()

    def _watch(self, number: int) -> Any:
        settings = self._settings

        def look(layer: MaskedReLU, inputs: tuple[Tensor], output: Tensor) -> None:
            if not (layer.training and output.requires_grad) or self._step % settings.score_every:
                return
            x = inputs[0].detach()

            def score(gradient: Tensor) -> None:
                # The loss is a mean over the batch; a common factor does not change a ranking.
                square = (gradient * change_if_removed(layer, x)).float().square().mean(0)
                self._worth[number].lerp_(square * len(x) ** 2, 1 - settings.memory)

            output.register_hook(score)  # type: ignore[no-untyped-call]

        return look

    def _update(self) -> None:
        settings, progress = self._settings, self._step / self._last_update
        worth = torch.cat([worth.flatten() for worth in self._worth]).cpu()
        if settings.most_layers is not None:
            self._close_layers(worth, settings.most_layers, progress)
        kept = get_relu_mask(self._model)
        # Below every kept ReLU, also those that are worth nothing, where none may come back.
        factor = settings.return_factor
        removed = worth * factor if factor > 0 else torch.full_like(worth, -1.0)
        ranked = torch.where(kept, worth, removed).masked_fill(~self._in_open_layers(), -2.0)
        allowed = int(self._in_open_layers().sum())
        count = min(count_at(self._start, self._budget, progress, settings.curve), allowed)
        changed = keep_largest(ranked, count)
        self._given_back += int((changed & ~kept).sum())
        set_relu_mask(self._model, changed)

    def _close_layers(self, worth: Tensor, most: int, progress: float) -> None:
        """Close layers until no more are open than are due, first those whose part of the budget is worth least.

        Those that stay have room for the budget, also when only `most` of them are left.
        """
        sizes = [layer.numel() for layer in self._worth]
        due = most + math.ceil((len(sizes) - most) * max(0.0, 1 - progress / _CLOSED_AT))
        while int(self._open.sum()) > due:
            kept = keep_largest(worth.masked_fill(~self._in_open_layers(), -1.0), self._budget)
            totals = [float(part.sum()) for part in torch.split(torch.where(kept, worth, 0.0), sizes)]
            still_open = self._open.nonzero().flatten().tolist()
            for number in sorted(still_open, key=totals.__getitem__):
                others = [sizes[other] for other in still_open if other != number]
                if _largest(others, most) >= self._budget:
                    self._open[number] = False
                    break

    def _in_open_layers(self) -> Tensor:
        sizes = torch.tensor([worth.numel() for worth in self._worth])
        return self._open.repeat_interleave(sizes)


def _largest(sizes: Sequence[int], count: int) -> int:
    """The sum of so many of the largest sizes."""
    return sum(sorted(sizes, reverse=True)[:count])


def _shape(layer: MaskedReLU) -> torch.Size:
    return layer.get_buffer("relu_mask").shape


def _device(layer: MaskedReLU) -> torch.device:
    return layer.get_buffer("relu_mask").device
