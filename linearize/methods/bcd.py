"""Block coordinate descent on the binary mask (arXiv 2511.11781), as a method; the search itself is `linearize.bcd`."""

from typing import Any

from linearize.bcd import bcd
from linearize.methods.base import Task


def coordinate_descent(task: Task) -> dict[str, Any]:
    """Remove blocks of ReLUs from task.model, the reference network, until the budget is met."""
    return bcd(task.model, task.teacher, task.relu_budget, task.config.bcd, task.context, task.log_path, task.ranks)
