"""What a linearization method is given and what it must leave behind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linearize.config import RunConfig
from linearize.errors import BudgetError
from linearize.ranks import Ranks
from linearize.relu_mask import relu_count
from linearize.rng import generator
from linearize.stage import StageContext
from linearize.train import Teacher


@dataclass(frozen=True)
class Task:
    """One linearization.

    model: the network to reduce, in place: the trained baseline with all its ReLUs, or a reference network with more
    than relu_budget of them. teacher: the baseline. config: of the run; a method reads its own section. context: data,
    device, seed, saved states; its meter counts the images by itself. log_path: where a method may log its steps.
    ranks: of torchrun, for a method that is spread over them.
    """

    model: nn.Module
    teacher: Teacher
    relu_budget: int
    config: RunConfig
    context: StageContext
    log_path: Path
    ranks: Ranks = field(default_factory=Ranks)


# Leaves exactly relu_budget ReLUs in task.model, and finetunes only as far as the method itself asks for it: the last
# finetune is the driver's, the same for all. Returns JSON values for the record. After a kill the same call goes on.
Method = Callable[[Task], dict[str, Any]]


def check_count(task: Task, name: str) -> None:
    """Raise BudgetError unless the network has exactly the budget's number of ReLUs."""
    count = relu_count(task.model)
    if count != task.relu_budget:
        raise BudgetError(f"method {name} must leave {task.relu_budget:,} ReLUs, but left {count:,}; mend the method")


def geometric_budgets(start: int, end: int, cuts: int) -> list[int]:
    """ReLU counts after each of `cuts` cuts from start to end, by equal factors; cuts of nothing are left out."""
    counts = [round(start * (end / start) ** ((cut + 1) / cuts)) for cut in range(cuts - 1)] + [end]
    return [count for before, count in zip([start, *counts], counts, strict=False) if count < before]


def sample_images(task: Task, images: int, purpose: str) -> Tensor:
    """int64 [M], M at most `images`: training images drawn without replacement, by the run's seed and a purpose."""
    order = torch.randperm(len(task.context.data.train), generator=generator(task.context.seed, purpose))
    return order[:images].sort().values.to(task.context.device)
