"""The baseline below all baselines: ReLUs kept uniformly at random over the whole network. Weights stay as they are."""

from typing import Any

import torch

from linearize.methods.base import Task
from linearize.relu_mask import get_relu_mask, keep_largest, set_relu_mask
from linearize.rng import generator


def random_mask(task: Task) -> dict[str, Any]:
    """Keep relu_budget ReLUs, each set of that size as likely as any other."""
    present = get_relu_mask(task.model)
    drawn = torch.rand(len(present), generator=generator(task.context.seed, "random mask"), dtype=torch.float64)
    set_relu_mask(task.model, keep_largest(drawn.masked_fill(~present, -1), task.relu_budget))
    return {}
