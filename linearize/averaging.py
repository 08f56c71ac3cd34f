"""Weights averaged over the steps of a finetune or over several finetunes, and the BatchNorm statistics they need.

Moving average: Polyak and Juditsky 1992. Averaging of finetunes from one start: model soups (arXiv 2203.05482), here
with one ReLU mask. Neither average says anything about running statistics, so these are measured again afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linearize.data import Batch, Dataset
from linearize.meter import monitoring
from linearize.train import accuracy


class MovingAverage:
    """Exponential moving average of all parameters, `decay` a step; starts at the weights of the first step."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self._average:
                self._average[name].lerp_(parameter, 1 - self._decay)
            else:
                self._average[name] = parameter.detach().clone()

    def after_epoch(self, model: nn.Module, record: dict[str, Any]) -> None:
        """Nothing: the average moves a step at a time."""

    def tensors(self) -> dict[str, Tensor]:
        return self._average

    def restore(self, tensors: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]) -> None:
        self._average = dict(tensors)

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Put the average in place of the weights."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self._average[name])


class BestEpoch:
    """Keeps the network of the epoch with the highest accuracy on the validation images; of equals the earliest.

    every: of so many epochs, counted back from the last of `epochs`, one is measured; its record gets val_accuracy, in
    percent.
    """

    def __init__(self, data: Dataset, epochs: int, every: int = 1) -> None:
        self._data, self._epochs, self._every = data, epochs, every
        self._best: dict[str, Tensor] = {}
        self.val_accuracy = -1.0
        self.epoch = -1

    def after_step(self, model: nn.Module) -> None:
        """Nothing: only whole epochs are measured."""

    def after_epoch(self, model: nn.Module, record: dict[str, Any]) -> None:
        if (self._epochs - 1 - record["epoch"]) % self._every:
            return
        with monitoring():
            record["val_accuracy"] = accuracy(model, self._data, self._data.val)
        if record["val_accuracy"] > self.val_accuracy:
            self.val_accuracy, self.epoch = record["val_accuracy"], record["epoch"]
            self._best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        return self._best

    def restore(self, tensors: Mapping[str, Tensor], history: Sequence[Mapping[str, Any]]) -> None:
        self._best = dict(tensors)
        measured = [record for record in history if "val_accuracy" in record]
        if measured:
            best = max(measured, key=lambda record: (record["val_accuracy"], -record["epoch"]))
            self.val_accuracy, self.epoch = best["val_accuracy"], best["epoch"]

    def write_to(self, model: nn.Module) -> None:
        """Put the best epoch's network in place of the present one."""
        model.load_state_dict(self._best)


@torch.no_grad()
def average_weights(model: nn.Module, members: Sequence[Mapping[str, Tensor]]) -> None:
    """Write the mean of several state dicts of one network into its parameters; buffers stay."""
    for name, parameter in model.named_parameters():
        stacked = torch.stack([member[name].to(parameter.device) for member in members])
        parameter.copy_(stacked.mean(0))


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics of every BatchNorm by the mean of those of some batches. Leaves eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for batch in batches:
        model(batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
