"""Progressive cuts by first-order scores: what ReLUPruner (AAAI 2026) does in idea, not a reproduction of it.

The count falls geometrically. Each cut removes the ReLUs that cost least to first order, over the whole network, and
is followed by a finetune, so that the next scores are those of a network that has got used to its mask. ReLUPruner
itself fixes budgets for each layer, by rules that are not public in full.
"""

from typing import Any

import torch

from linearize.finetune import finetune
from linearize.methods.base import Task, geometric_budgets
from linearize.relu_mask import get_relu_mask, keep_largest, relu_count, set_relu_mask
from linearize.rng import generator
from linearize.sensitivity import relu_scores
from linearize.train import accuracy


def taylor(task: Task) -> dict[str, Any]:
    """Cut to the budget in `taylor.cuts` steps; the last cut is left for the driver's finetune.

    Returns {"cuts"}: a record each, with relu_count, and val_accuracy in percent before its finetune.
    """
    settings, context, model = task.config.taylor, task.context, task.model
    state = context.state("taylor")
    saved = state.load()
    if saved is None:
        budgets = geometric_budgets(relu_count(model), task.relu_budget, settings.cuts)
        records: list[dict[str, Any]] = []
        state.save(model.state_dict(), {"budgets": budgets, "records": records})
    else:
        model.load_state_dict(saved[0])
        budgets, records = saved[1]["budgets"], saved[1]["records"]
    with context.reporter.task("taylor", len(budgets)) as progress:
        progress.advance(len(records))
        for cut in range(len(records), len(budgets)):
            _cut(task, budgets[cut], cut)
            records.append(
                {"relu_count": budgets[cut], "val_accuracy": accuracy(model, context.data, context.data.val)}
            )
            if cut < len(budgets) - 1:
                stage = f"taylor_finetune/{cut}"
                finetune(model, task.teacher, settings.finetune, context, stage=stage, name="taylor_finetune")
            state.save(model.state_dict(), {"budgets": budgets, "records": records})
            progress.advance()
            progress.say(f"{budgets[cut]:,} ReLUs, validation {records[-1]['val_accuracy']:.2f} % before finetuning")
    return {"cuts": records}


def _cut(task: Task, budget: int, cut: int) -> None:
    settings, context = task.config.taylor, task.context
    scores = relu_scores(
        task.model,
        context.data,
        settings.images,
        statistic=settings.statistic,
        loss=settings.loss,
        teacher=task.teacher if settings.loss == "distill" else None,
        rng=generator(context.seed, "taylor", cut),
    )
    scores = scores.masked_fill(~get_relu_mask(task.model), -torch.inf)
    set_relu_mask(task.model, keep_largest(scores, budget))
