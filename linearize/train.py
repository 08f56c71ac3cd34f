"""The epoch loop that baseline, SNL and finetuning share: losses, learning rates, accuracy, resume.

Legend: B batch, K classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linearize.config import Schedule, SgdConfig
from linearize.data import Batch, Dataset, batches_per_epoch, ordered_batches, training_batches
from linearize.datasets import Split
from linearize.meter import monitoring
from linearize.relu_mask import TRAINED_PARTS
from linearize.rng import generator
from linearize.stage import SavedState, StageContext

_EVAL_BATCH_SIZE = 256

# (logits [B, K], batch) -> mean loss of the batch, a scalar.
Loss = Callable[[Tensor, Batch], Tensor]


def learning_rate_factor(schedule: Schedule, progress: float) -> float:
    """The learning rate over its largest value, at a progress from 0 (first step) to 1 (end).

    one_cycle: linear from 0.1 to 1 over the first quarter, then a cosine to 0. cosine: to 0.
    step: x0.1 at 50 % and again at 75 %.
    """
    match schedule:
        case "one_cycle":
            if progress < 0.25:
                return 0.1 + 0.9 * progress / 0.25
            return 0.5 * (1 + math.cos(math.pi * (progress - 0.25) / 0.75))
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times temperature squared, mean over the batch.

    logits, teacher_logits: float [B, K]. Hinton et al., arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A network that is imitated. Logits of images that are not augmented are computed once."""

    def __init__(self, model: nn.Module, data: Dataset) -> None:
        self._model = model.eval().requires_grad_(False)
        self._data = data
        self._cached: Tensor | None = None

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits of a training batch, float [B, K]."""
        if batch.augmented:
            return self._model(batch.inputs).float()  # type: ignore[no-any-return]
        if self._cached is None:
            batches = ordered_batches(self._data, self._data.train, _EVAL_BATCH_SIZE)
            self._cached = torch.cat([self._model(inputs).float() for inputs, _ in batches])
        return self._cached[batch.indices]


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The loss of plain training."""
    return F.cross_entropy(logits, batch.labels)


def distilled(teacher: Teacher, weight: float, temperature: float) -> Loss:
    """Cross-entropy plus weight times the distillation loss."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        imitation = distillation_loss(logits, teacher.logits(batch), temperature)
        return F.cross_entropy(logits, batch.labels) + weight * imitation

    return loss


@torch.inference_mode()
def accuracy(model: nn.Module, data: Dataset, split: Split) -> float:
    """Top-1 accuracy in percent, eval mode, no augmentation; for the record only, so its passes are not counted.

    Leaves the network in eval mode.
    """
    model.eval()
    batches = ordered_batches(data, split, _EVAL_BATCH_SIZE)
    with monitoring():
        correct = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches)
    return 100 * correct / len(split)


class Follower(Protocol):
    """Something that follows a training along and goes on with it after a kill."""

    def after_step(self, model: nn.Module) -> None:
        """Called after each gradient step."""

    def after_epoch(self, model: nn.Module, record: dict[str, Any]) -> None:
        """Called after each epoch with its record, to which it may add JSON values."""

    def tensors(self) -> dict[str, Tensor]:
        """What must be saved."""

    def restore(self, tensors: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `tensors` gave, with the records of the epochs so far, at least one."""


@dataclass(frozen=True)
class EpochResult:
    """loss: mean over the epoch's batches. train_accuracy: percent, of the batches as they were trained on."""

    loss: float
    train_accuracy: float


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss: Loss,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], bool] | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> EpochResult:
    """One pass of gradient steps in train mode. Hooks get the step's number; a true `after_step` ends the pass.

    autocast: entered for each forward pass and its loss.
    """
    autocast = autocast or nullcontext()
    model.train()
    losses, correct, seen = [], 0, 0
    for step, batch in enumerate(batches):
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            logits = model(batch.inputs)
            value = loss(logits, batch)
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(value.detach())
        correct += int((logits.detach().argmax(1) == batch.labels).sum())
        seen += len(batch.labels)
        if after_step is not None and after_step(step):
            break
    return EpochResult(float(torch.stack(losses).mean()), 100 * correct / seen)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a network and its optimizer by name."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items() if value is not None}
    return tensors


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `snapshot` on a network and an optimizer of the same construction."""
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def sgd(model: nn.Module, settings: SgdConfig) -> torch.optim.SGD:
    """SGD over all weights of a network; what replaces removed ReLUs is not decayed towards zero."""
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith(TRAINED_PARTS)]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": settings.weight_decay}]
    replacements = [parameter for name, parameter in model.named_parameters() if name.endswith(TRAINED_PARTS)]
    if replacements:
        groups.append({"params": replacements, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def fit(
    model: nn.Module,
    settings: SgdConfig,
    context: StageContext,
    *,
    stage: str,
    loss: Loss,
    augmented: bool,
    state: SavedState,
    followers: Sequence[Follower] = (),
) -> list[dict[str, Any]]:
    """Train by SGD for settings.epochs, saving state after each epoch and going on from a saved one.

    stage names the random streams and must differ between any two fits of a run; a state saved under another name is
    ignored. Returns a record for each epoch: epoch, loss, train_accuracy (percent). The caller
    clears the state once it has kept the result. Leaves the network in eval mode.
    """
    optimizer = sgd(model, settings)
    history: list[dict[str, Any]] = []
    saved = state.load()
    if saved is not None and saved[1]["stage"] == stage:
        restore(model, optimizer, saved[0])
        history = saved[1]["history"]
        for number, follower in enumerate(followers):
            prefix = f"follower.{number}."
            kept = {name.removeprefix(prefix): value for name, value in saved[0].items() if name.startswith(prefix)}
            follower.restore({name: value.to(context.device) for name, value in kept.items()}, history)
    steps = batches_per_epoch(context.data, settings.batch_size)

    def follow(step: int) -> bool:
        for follower in followers:
            follower.after_step(model)
        return False

    with context.reporter.task(stage, settings.epochs) as task:
        task.advance(len(history))
        for epoch in range(len(history), settings.epochs):

            def set_lr(step: int, epoch: int = epoch) -> None:
                factor = learning_rate_factor(settings.schedule, (epoch * steps + step) / (settings.epochs * steps))
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor

            batches = training_batches(
                context.data, settings.batch_size, augmented, generator(context.seed, stage, epoch)
            )
            result = train_epoch(
                model, optimizer, batches, loss, before_step=set_lr, after_step=follow, autocast=context.autocast()
            )
            record = {"epoch": epoch, "loss": result.loss, "train_accuracy": result.train_accuracy}
            tensors = snapshot(model, optimizer)
            for number, follower in enumerate(followers):
                follower.after_epoch(model, record)
                tensors |= {f"follower.{number}.{name}": value for name, value in follower.tensors().items()}
            history.append(record)
            state.save(tensors, {"stage": stage, "history": history})
            task.advance()
            task.say(f"epoch {epoch + 1}, loss {result.loss:.3f}, train accuracy {result.train_accuracy:.2f} %")
    model.eval()
    return history
