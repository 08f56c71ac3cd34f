"""Training of a linearized network under its fixed masks, with distillation from the full-ReLU network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from linearize.averaging import BestEpoch, MovingAverage, average_weights, reestimate_batch_norm
from linearize.config import DistillConfig, LastFinetuneConfig
from linearize.data import training_batches
from linearize.rng import generator
from linearize.stage import StageContext
from linearize.train import Follower, Teacher, distilled, fit


def finetune(
    model: nn.Module,
    teacher: Teacher,
    settings: DistillConfig,
    context: StageContext,
    *,
    stage: str,
    name: str = "",
    followers: Sequence[Follower] = (),
) -> list[dict[str, Any]]:
    """Train all weights in place; the binary masks are buffers and stay. Returns a record for each epoch.

    stage names the random streams and must differ between any two finetunes of a run; name (default: stage) names the
    saved state, which the caller clears once it has kept the result.
    """
    loss = distilled(teacher, settings.kd_weight, settings.kd_temperature)
    state = context.state(name or stage)
    with context.meter.activity("finetune"):
        return fit(
            model,
            settings,
            context,
            stage=stage,
            loss=loss,
            augmented=settings.augment,
            state=state,
            followers=followers,
        )


@dataclass(frozen=True)
class LastFinetune:
    """records: an epoch each, of all finetunes. best: the epoch of the highest validation accuracy; None: no epochs."""

    records: list[dict[str, Any]]
    best: BestEpoch | None


def last_finetune(
    model: nn.Module, teacher: Teacher, settings: LastFinetuneConfig, context: StageContext
) -> LastFinetune:
    """The finetune that every method ends with, in place: `settings.soup` finetunes from one start, averaged.

    With a moving average, each of them ends as its average. Where weights were averaged, the BatchNorm statistics are
    measured again on one epoch's images. Records carry `member`, the number of the finetune.
    """
    start = _copy(model)
    records: list[dict[str, Any]] = []
    members: list[dict[str, Tensor]] = []
    best: BestEpoch | None = None
    for member in range(settings.soup):
        model.load_state_dict(start)
        tracked, average = (
            BestEpoch(context.data, settings.epochs, settings.validate_every),
            MovingAverage(settings.ema),
        )
        stage = "finetune" if member == 0 else f"finetune_{member}"
        followers: list[Follower] = [tracked, average] if settings.ema else [tracked]
        epochs = finetune(model, teacher, settings, context, stage=stage, followers=followers)
        if epochs and settings.ema:
            average.write_to(model)
        if epochs and (best is None or tracked.val_accuracy > best.val_accuracy):
            best = tracked
        records += [{"member": member, **epoch} for epoch in epochs]
        members.append(_copy(model))
    if records and (settings.ema or settings.soup > 1):
        average_weights(model, members)
        batches = training_batches(
            context.data, settings.batch_size, settings.augment, generator(context.seed, "batch norm")
        )
        with context.meter.activity("finetune"):
            reestimate_batch_norm(model, batches)
    return LastFinetune(records, best)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
