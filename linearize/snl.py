"""Selective network linearization (Cho et al., ICML 2022): the reference network that BCD starts from.

Masks become real numbers that are trained with the weights under an L1 penalty until few enough of them are above a
threshold; those stay, as binary masks, and the network is finetuned with distillation.

Departures from the authors' program: the count is checked after every gradient step, not every epoch, so that a short
run cannot overshoot by an epoch; masks have a learning rate of their own; they are kept from going below zero, around
which a large learning rate would have them swing, and the count be a matter of chance; of a count that fell below the
reference budget all the same, the largest masks are kept so that the budget is met.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linearize.config import SnlConfig
from linearize.data import Batch, training_batches
from linearize.finetune import finetune
from linearize.meter import Meter
from linearize.relu_mask import harden, keep_largest, relax, relu_count, relu_total
from linearize.rng import generator
from linearize.stage import SavedState, StageContext
from linearize.train import Teacher, distilled, restore, snapshot, train_epoch


def select_kept(soft_mask: Tensor, threshold: float, at_least: int) -> Tensor:
    """Binary masks of real ones: those above the threshold, or the `at_least` largest if these are fewer.

    soft_mask: float [relu_total]. Returns bool [relu_total].
    """
    kept = soft_mask > threshold
    if int(kept.sum()) < at_least:
        kept = torch.zeros_like(kept)
        kept[soft_mask.argsort(descending=True, stable=True)[:at_least]] = True
    return kept


class Trajectory:
    """The mask phase of runs that differ in their budget alone: the same steps, of which a smaller budget takes more.

    One run leaves the state after each whole epoch to the others, with what it cost until then.
    """

    def __init__(self, context: StageContext, relu_budget: int) -> None:
        self._context, self._budget = context, relu_budget

    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Leave the state, unless the budget ended its last epoch before its time."""
        history = progress["history"]
        if self._context.shared_dir is not None and _least(history) > self._budget:
            self._state(len(history)).save(tensors, progress)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last state before this budget was met, if any run left one."""
        if self._context.shared_dir is None:
            return None
        for epochs in range(len(list(self._context.shared_dir.glob("snl_masks_*.safetensors"))), 0, -1):
            state = SavedState(self._path(epochs), Meter())
            saved = state.load()
            if saved is not None and _least(saved[1]["history"]) > self._budget:
                return self._state(epochs).load()
        return None

    def _state(self, epochs: int) -> SavedState:
        return SavedState(self._path(epochs), self._context.meter)

    def _path(self, epochs: int) -> Path:
        assert self._context.shared_dir is not None, "only where states are shared"
        return self._context.shared_dir / f"snl_masks_{epochs}.safetensors"


def _least(history: Sequence[Mapping[str, Any]]) -> int:
    """The lowest count after any gradient step of the epochs."""
    return min(int(epoch["least_count"]) for epoch in history)


def train_masks(
    model: nn.Module,
    teacher: Teacher,
    relu_budget: int,
    settings: SnlConfig,
    context: StageContext,
    *,
    exact: bool,
) -> list[dict[str, Any]]:
    """Train weights and real-valued masks until at most relu_budget masks are left; then make masks binary, in place.

    After settings.max_epochs more may be left: exact has the largest relu_budget kept all the same. Returns a record
    for each epoch. The state, "snl_masks" of the context, stays for the caller to clear.
    """
    state, trajectory = context.state("snl_masks"), Trajectory(context, relu_budget)
    masks = relax(model)
    mask_ids = {id(mask) for mask in masks}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in mask_ids]
    optimizer = torch.optim.Adam([{"params": weights, "lr": settings.lr}, {"params": masks, "lr": settings.mask_lr}])
    history: list[dict[str, Any]] = []
    l1_weight, lowest = settings.l1_weight, relu_total(model)
    saved = state.load() or trajectory.load()
    if saved is not None:
        restore(model, optimizer, saved[0])
        history, l1_weight, lowest = saved[1]["history"], saved[1]["l1_weight"], saved[1]["lowest"]
    imitate = distilled(teacher, settings.kd_weight, settings.kd_temperature)

    def count() -> int:
        return int(sum((mask.detach() > settings.threshold).sum() for mask in masks))

    least = 0

    @torch.no_grad()
    def project_and_check(step: int) -> bool:
        nonlocal least
        for mask in masks:
            mask.clamp_(min=0)
        least = min(least, present := count())
        return present <= relu_budget

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        penalty = torch.stack([mask.sum() for mask in masks]).sum()
        return imitate(logits, batch) + l1_weight * penalty

    with context.reporter.task("snl masks", settings.max_epochs) as task:
        task.advance(len(history))
        for epoch in range(len(history), settings.max_epochs):
            if count() <= relu_budget:
                break
            rng = generator(context.seed, "snl", epoch)
            batches = training_batches(context.data, settings.batch_size, settings.augment, rng)
            least = relu_total(model)
            result = train_epoch(
                model, optimizer, batches, loss, after_step=project_and_check, autocast=context.autocast()
            )
            present = count()
            record = {"epoch": epoch, "loss": result.loss, "train_accuracy": result.train_accuracy}
            history.append({**record, "relu_count": present, "least_count": least, "l1_weight": l1_weight})
            if present >= lowest and epoch >= settings.patience:
                l1_weight *= settings.growth
            lowest = min(lowest, present)
            progress = {"history": history, "l1_weight": l1_weight, "lowest": lowest}
            tensors = snapshot(model, optimizer)
            state.save(tensors, progress)
            trajectory.save(tensors, progress)
            task.advance()
            task.say(f"epoch {epoch + 1}, train accuracy {result.train_accuracy:.2f} %, {present:,} ReLUs")
    soft_mask = torch.cat([mask.detach().reshape(-1) for mask in masks])
    if exact:
        harden(model, keep_largest(soft_mask, relu_budget))
    else:
        harden(model, select_kept(soft_mask, settings.threshold, relu_budget))
    return history


def make_reference(
    model: nn.Module, teacher: Teacher, reference_budget: int, settings: SnlConfig, context: StageContext
) -> dict[str, Any]:
    """Reduce a full-ReLU network, in place, to the reference network of BCD.

    Its count is reference_budget, or more if settings.max_epochs did not suffice (said in the log). A budget of the
    whole network leaves it as it is. Returns a report: mask_epochs and finetune_epochs (a record each), relu_count.
    """
    if reference_budget >= relu_total(model):
        return {"mask_epochs": [], "finetune_epochs": [], "relu_count": relu_count(model)}
    mask_epochs = train_masks(model, teacher, reference_budget, settings, context, exact=False)
    count = relu_count(model)
    if count > reference_budget:
        context.reporter.log(
            f"snl: {count:,} ReLUs after snl.max_epochs {settings.max_epochs}, {reference_budget:,} were asked for; "
            "BCD removes the rest (raise snl.mask_lr or snl.l1_weight to get there)"
        )
    # The mask state stays until the finetune is done: a killed finetune finds its start again through it.
    epochs = finetune(model, teacher, settings.finetune, context, stage="snl_finetune")
    context.state("snl_masks").clear()
    context.state("snl_finetune").clear()
    return {"mask_epochs": mask_epochs, "finetune_epochs": epochs, "relu_count": count}
