"""Block coordinate descent on a binary ReLU mask (arXiv 2511.11781): search, finetune, log, resume.

Candidates are scored on training images without augmentation, in eval mode, with the weights frozen. After a commit,
and after a finetune, the reference is what the network then scores. The last block is shortened so that the budget is
met exactly. (The authors' prototype scores augmented images, lets its reference drift, and overshoots; the second is
the option `drift`.) What goes beyond the paper is off by default: see `linearize.config.BcdConfig`.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from linearize.bcd_finetune import finetune_images, finetune_step
from linearize.bcd_log import Acceptance, StepLog
from linearize.bcd_step import Found, Layers, StepSearch
from linearize.config import BcdConfig
from linearize.meter import monitoring
from linearize.ranks import Ranks, share_context
from linearize.relu_mask import layer_counts, relu_count
from linearize.scoring import Reference, Scoring
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy


@dataclass
class Progress:
    """What a run has come to between steps, or before the finetune of one (found: the search's part of its record).

    budget_steps: at the budget. settled: nothing is left to try there. drift_errors: the reference that drifts.
    """

    start_count: int
    step: int = 0
    finetunes: int = 0
    budget_steps: int = 0
    settled: bool = False
    drift_errors: int | None = None
    full_counts: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)
    acceptance: dict[str, float] = field(default_factory=dict)
    found: dict[str, Any] | None = None


def bcd(
    model: nn.Module,
    teacher: Teacher,
    relu_budget: int,
    settings: BcdConfig,
    context: StageContext,
    log_path: Path,
    ranks: Ranks = Ranks(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Remove ReLUs from a network, in place, until exactly relu_budget are left.

    Each finished step is a line of log_path (accuracies in percent; of training images unless said otherwise):
    step, relu_count, layer_counts, block (ReLUs removed), exchanged (given back for as many others), moved (a layer was
    emptied or its emptying begun), accepted, finetuned; tries (kind, errors, images, drop in points of each candidate),
    acceptance (accepted tries over tries of this step), uniform_p (running estimate for random blocks, this step
    included) and predicted_success (1 - (1 - p)^RT from the estimate before it);
    reference_accuracy (before the step), searched_accuracy (after the search), train_accuracy (at the end), all three
    on accuracy_images; val_accuracy; search_images (scored), gradient_images (of the worth of ReLUs, also sent
    backward), reference_images (to measure the reference), finetune_images (also sent backward); search_s, finetune_s.
    Work that every rank repeats is counted once.

    Returns {"steps", "finetunes"}. Resumes from its state in context. All ranks call this together; only the first one
    writes, and the masks are those of one rank alone unless `finetune_ranks` is ddp.
    """
    return _Descent(model, teacher, relu_budget, settings, context, log_path, ranks).run()


class _Descent:
    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        relu_budget: int,
        settings: BcdConfig,
        context: StageContext,
        log_path: Path,
        ranks: Ranks,
    ) -> None:
        self._model, self._teacher, self._budget, self._settings = model, teacher, relu_budget, settings
        self._context, self._shared = context, share_context(context, ranks)
        self._scoring = Scoring(model, context.data, settings, context.seed)
        self._log = StepLog(log_path, write=ranks.first)
        self._state = self._shared.state("bcd")

    def run(self) -> dict[str, Any]:
        progress, reference = self._resume()
        self._log.keep_first(progress.step)
        total = progress.start_count - self._budget
        with self._shared.reporter.task("bcd", total) as task:
            task.advance(progress.start_count - relu_count(self._model))
            while progress.found is not None or not self._finished(progress):
                before = relu_count(self._model)
                reference, record = self._step(progress, reference)
                task.advance(before - record["relu_count"])
                task.say(
                    f"{record['relu_count']:,} ReLUs, {'accepted' if record['accepted'] else 'least bad'} of "
                    f"{len(record['tries'])}, train accuracy {record['train_accuracy']:.2f} %, "
                    f"validation {record['val_accuracy']:.2f} %"
                )
        return {"steps": progress.step, "finetunes": progress.finetunes}

    def _finished(self, progress: Progress) -> bool:
        if relu_count(self._model) > self._budget:
            return False
        if self._settings.objective == "latency":
            return progress.settled
        return progress.settled or progress.budget_steps >= self._settings.exchange_steps

    def _step(self, progress: Progress, reference: Reference) -> tuple[Reference, dict[str, Any]]:
        """One step, or the rest of one that was interrupted in its finetune."""
        settings = self._settings
        if progress.found is None:
            progress.found, reference = self._search(progress, reference)
            if progress.found["finetuned"]:
                self._save(progress, reference)
        record = dict(progress.found)
        started = time.monotonic()
        if record["finetuned"]:
            finetune_step(self._model, self._teacher, settings, self._context, self._shared, progress.step)
            progress.finetunes += 1
        finetuned_s = time.monotonic() - started
        if record["finetuned"] or settings.scoring == "racing":
            reference = self._scoring.measure(progress.step + 1)
        record |= {
            "relu_count": relu_count(self._model),
            "layer_counts": layer_counts(self._model),
            "train_accuracy": reference.accuracy,
            "val_accuracy": self._validation_accuracy(),
            "reference_images": record["reference_images"] + self._scoring.take_measured(),
            "finetune_images": finetune_images(settings, self._context.data) if record["finetuned"] else 0,
            "finetune_s": round(finetuned_s, 3),
        }
        self._log.append(record)
        progress.step += 1
        progress.found = None
        self._save(progress, reference)
        self._shared.state("bcd_finetune").clear()
        return reference, record

    def _search(self, progress: Progress, reference: Reference) -> tuple[dict[str, Any], Reference]:
        """The search of a step: what its record holds before the finetune, and the reference after it."""
        settings = self._settings
        excess = relu_count(self._model) - self._budget
        reference_errors = reference.errors if progress.drift_errors is None else progress.drift_errors
        held_against = len(reference.indices)
        found = StepSearch(
            self._model,
            self._scoring,
            settings,
            self._shared,
            step=progress.step,
            excess=excess,
            reference=reference,
            reference_errors=reference_errors,
            layers=Layers(progress.full_counts, progress.closing),
        ).run()
        if settings.drift:
            progress.drift_errors = found.last_errors if found.last_errors is not None else found.reference.errors
        if excess == 0:
            progress.budget_steps += 1
            progress.settled = not found.accepted
        acceptance = Acceptance(**progress.acceptance)
        after = acceptance.after(found.uniform_tries, found.uniform_accepted)
        progress.acceptance = after.document()
        record = {
            "step": progress.step,
            **found.record,
            "finetuned": self._needs_finetune(found),
            "uniform_p": after.probability,
            "predicted_success": acceptance.success(settings.rt),
            "reference_accuracy": 100 * (held_against - reference_errors) / held_against,
            "accuracy_images": held_against,
            "reference_images": self._scoring.take_measured(),
        }
        return record, found.reference

    def _needs_finetune(self, found: Found) -> bool:
        return found.changed and (self._settings.finetune_policy == "always" or found.over_tolerance)

    def _validation_accuracy(self) -> float:
        """For the record, on the first rank alone."""
        if not self._shared.ranks.first:
            return 0.0
        with monitoring():
            return accuracy(self._model, self._context.data, self._context.data.val)

    def _save(self, progress: Progress, reference: Reference) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        tensors |= {"reference.indices": reference.indices, "reference.margins": reference.margins}
        self._state.save(tensors, asdict(progress))

    def _resume(self) -> tuple[Progress, Reference]:
        saved = self._state.load()
        if saved is not None:
            tensors, document = saved
            prefix = "model."
            self._model.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            )
            return Progress(**document), Reference(tensors["reference.indices"], tensors["reference.margins"])
        self._shared.ranks.share_model(self._model)
        counts = list(layer_counts(self._model).values())
        progress = Progress(start_count=sum(counts), full_counts=counts)
        return progress, self._scoring.measure(0)
