"""Selective network linearization (Cho et al., ICML 2022), as a method; the mask phase is `linearize.snl`.

The published program stops at the first count within the budget, which may be some ReLUs below it; here the largest
real-valued masks are kept so that the budget is met exactly, also where snl.max_epochs ended the mask phase early.
"""

from typing import Any

from linearize.methods.base import Task
from linearize.snl import train_masks


def snl(task: Task) -> dict[str, Any]:
    """Train real-valued masks with the weights under an L1 penalty, then keep the relu_budget largest."""
    epochs = train_masks(task.model, task.teacher, task.relu_budget, task.config.snl, task.context, exact=True)
    return {"mask_epochs": epochs}
