"""Block coordinate descent on a binary ReLU mask (arXiv 2511.11781): search, finetune, log, resume.

Candidates are scored on all training images without augmentation, in eval mode, with the weights frozen. After a
commit, and after a finetune, the reference is what the network then scores. The last block is shortened so that the
budget is met exactly. (The authors' prototype scores augmented images, lets its reference drift, and overshoots.)
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linearize.bcd_search import Score, Scorer, search_step
from linearize.config import BcdConfig
from linearize.data import Dataset, ordered_batches
from linearize.files import write_atomic
from linearize.finetune import finetune
from linearize.relu_mask import get_relu_mask, layer_counts, relu_count, set_relu_mask
from linearize.rng import generator
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy


def network_scorer(model: nn.Module, data: Dataset, batch_size: int) -> Scorer:
    """Score masks by the errors of a network on the training images; leaves the last mask scored in the network."""
    batches = list(ordered_batches(data, data.train, batch_size))

    @torch.inference_mode()
    def score(kept: Tensor, stop_at: int | None) -> Score:
        set_relu_mask(model, kept)
        model.eval()
        errors = images = 0
        for inputs, labels in batches:
            errors += int((model(inputs).argmax(1) != labels).sum())
            images += len(labels)
            if stop_at is not None and errors >= stop_at:
                break
        return Score(errors, images)

    return score


class StepLog:
    """bcd.jsonl: one JSON object a line, one line a finished step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep_first(self, steps: int) -> None:
        """Drop what an interrupted run wrote after its last saved step: further lines, a torn line."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        write_atomic(self._path, b"".join(lines[:steps]))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line and flush it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def bcd(
    model: nn.Module,
    teacher: Teacher,
    relu_budget: int,
    settings: BcdConfig,
    context: StageContext,
    log_path: Path,
) -> dict[str, Any]:
    """Remove ReLUs from a network, in place, until exactly relu_budget are left.

    Each finished step is a line of log_path: step, relu_count, block (ReLUs removed), accepted, finetuned, tries
    (errors and images of each candidate), accuracies in percent on the training images (reference_accuracy before the
    step, searched_accuracy after the removal, train_accuracy at the end), val_accuracy, layer_counts, search_s,
    finetune_s.
    Returns {"steps", "finetunes"}. Resumes from its state in context.
    """
    images = len(context.data.train)
    scorer = network_scorer(model, context.data, settings.eval_batch_size)
    state = context.state("bcd")
    log = StepLog(log_path)
    progress: dict[str, Any] = {"step": 0, "finetunes": 0, "reference_errors": None, "found": None}
    saved = state.load()
    if saved is not None:
        model.load_state_dict(saved[0])
        progress = saved[1]
    log.keep_first(progress["step"])
    if progress["reference_errors"] is None:
        progress["reference_errors"] = scorer(get_relu_mask(model), None).errors

    def percent(errors: int) -> float:
        return 100 * (images - errors) / images

    steps_left = -((relu_budget - relu_count(model)) // settings.drc)
    with context.reporter.task("bcd", progress["step"] + steps_left) as task:
        task.advance(progress["step"])
        while progress["found"] is not None or relu_count(model) > relu_budget:
            step, reference_errors = progress["step"], progress["reference_errors"]
            found = progress["found"]
            if found is None:
                found = progress["found"] = _search(model, relu_budget, settings, context, scorer, progress)
                if _needs_finetune(found, settings):
                    state.save(model.state_dict(), progress)
            errors = found["errors"]
            started = time.monotonic()
            if _needs_finetune(found, settings):
                finetune(model, teacher, settings.finetune, context, stage=f"bcd_finetune/{step}", name="bcd_finetune")
                errors = scorer(get_relu_mask(model), None).errors
                progress["finetunes"] += 1
            record = {
                "step": step,
                "relu_count": relu_count(model),
                "block": found["block"],
                "accepted": found["accepted"],
                "finetuned": _needs_finetune(found, settings),
                "tries": found["tries"],
                "reference_accuracy": percent(reference_errors),
                "searched_accuracy": percent(found["errors"]),
                "train_accuracy": percent(errors),
                "val_accuracy": accuracy(model, context.data, context.data.val),
                "layer_counts": layer_counts(model),
                "search_s": found["search_s"],
                "finetune_s": round(time.monotonic() - started, 3),
            }
            log.append(record)
            progress |= {"step": step + 1, "reference_errors": errors, "found": None}
            state.save(model.state_dict(), progress)
            context.state("bcd_finetune").clear()
            task.advance()
            task.say(
                f"{record['relu_count']:,} ReLUs, {'accepted' if found['accepted'] else 'least bad'} of "
                f"{len(found['tries'])}, train accuracy {record['train_accuracy']:.2f} %, "
                f"validation {record['val_accuracy']:.2f} %"
            )
    return {"steps": progress["step"], "finetunes": progress["finetunes"]}


def _needs_finetune(found: Mapping[str, Any], settings: BcdConfig) -> bool:
    return settings.finetune_policy == "always" or not found["accepted"]


def _search(
    model: nn.Module,
    relu_budget: int,
    settings: BcdConfig,
    context: StageContext,
    scorer: Scorer,
    progress: Mapping[str, Any],
) -> dict[str, Any]:
    """Find a block and commit it to the network."""
    started = time.monotonic()
    block = min(settings.drc, relu_count(model) - relu_budget)
    result = search_step(
        get_relu_mask(model),
        block,
        rt=settings.rt,
        adt=settings.adt,
        reference_errors=progress["reference_errors"],
        images=len(context.data.train),
        scorer=scorer,
        rng=generator(context.seed, "bcd", progress["step"]),
    )
    set_relu_mask(model, result.kept)
    return {
        "block": block,
        "errors": result.errors,
        "accepted": result.accepted,
        "tries": [{"errors": score.errors, "images": score.images} for score in result.tries],
        "search_s": round(time.monotonic() - started, 3),
    }
