"""Training of a linearized network under its fixed masks, with distillation from the full-ReLU network."""

from typing import Any

from torch import nn

from linearize.config import DistillConfig
from linearize.stage import StageContext
from linearize.train import Teacher, distilled, fit


def finetune(
    model: nn.Module, teacher: Teacher, settings: DistillConfig, context: StageContext, *, stage: str, name: str = ""
) -> list[dict[str, Any]]:
    """Train all weights in place; the binary masks are buffers and stay. Returns a record for each epoch.

    stage names the random streams and must differ between any two finetunes of a run; name (default: stage) names the
    saved state, which the caller clears once it has kept the result.
    """
    loss = distilled(teacher, settings.kd_weight, settings.kd_temperature)
    state = context.state(name or stage)
    return fit(model, settings, context, stage=stage, loss=loss, augmented=settings.augment, state=state)
