"""The road from images to a linearized network: baseline, reference, method, last finetune, each resumable.

The baseline may be given; only block coordinate descent has a reference network; any method of `linearize.methods` fits
between baseline and last finetune, which are the same for all.

A stage whose file is there is skipped; an unfinished one goes on from its saved state. All random streams are derived
from the seed and the stage, so an interrupted run ends with the same masks and weights, bit for bit, as an undisturbed
one on the same machine and thread count.

Under torchrun the candidates of block coordinate descent are spread over the ranks. The first one does everything else
and alone writes the run directory, which all must see.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearize.bcd_summary import summarise
from linearize.checkpoint import read_metadata, save_checkpoint
from linearize.config import RunConfig
from linearize.data import Dataset, load_dataset
from linearize.errors import BudgetError, CheckpointError, ConfigError
from linearize.finetune import finetune, last_finetune
from linearize.meter import Meter
from linearize.methods.base import Task, check_count
from linearize.methods.registry import find_method
from linearize.progress import Reporter
from linearize.ranks import Ranks, open_ranks
from linearize.relu_mask import relu_count, relu_total
from linearize.replacement import use_affine, use_affine_locations
from linearize.run_dir import RunDir, open_run
from linearize.small_maps import use_one_pixel_products
from linearize.snl import make_reference
from linearize.source import ConfiguredNetwork, NetworkSource
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy, cross_entropy, fit

# Of pixel values from 0 to 1: this project's choice of what a sample may differ from all images by. Below 1, so that
# sizes, which are whole numbers, must be equal.
_STATISTICS_TOLERANCE = 0.02


@dataclass(frozen=True)
class LinearizeResult:
    """Accuracies in percent on the test images, which are read for this only."""

    checkpoint: Path
    relu_total: int
    relu_count: int
    baseline_test_accuracy: float
    linearized_test_accuracy: float


def train_baseline(config: RunConfig, run_dir: Path, reporter: Reporter | None = None) -> Path:
    """Train the network with all its ReLUs, unless the run has it already; returns baseline.safetensors.

    Raises ConfigError (run directory, settings), DataError (images), CheckpointError (a damaged file of the run).
    """
    with _session(config, run_dir, reporter or Reporter()) as session:
        session.ranks.first_alone(session.baseline)
        return session.run.baseline


def run_linearization(
    config: RunConfig, run_dir: Path, reporter: Reporter | None = None, *, shared_dir: Path | None = None
) -> LinearizeResult:
    """Baseline, reference, method and last finetune, each unless the run has it; writes linearized.safetensors.

    shared_dir: where runs whose configs differ in budgets alone leave each other what they have in common.
    Raises as `train_baseline`, and BudgetError if the network has fewer ReLUs than the budget.
    """
    with _session(config, run_dir, reporter or Reporter(), shared_dir) as session:
        session.check_budget()
        session.complete()
        metadata = read_metadata(session.run.linearized)
        return LinearizeResult(
            checkpoint=session.run.linearized,
            relu_total=metadata["relu_total"],
            relu_count=metadata["relu_count"],
            baseline_test_accuracy=metadata["baseline_test_accuracy"],
            linearized_test_accuracy=metadata["linearized_test_accuracy"],
        )


@contextmanager
def _session(config: RunConfig, root: Path, reporter: Reporter, shared_dir: Path | None = None) -> Iterator["Session"]:
    with open_ranks(find_device(config)) as ranks:
        quiet = reporter if ranks.first else Reporter(quiet=True)
        # One after the other: the first may fetch or decode images, which the others then find.
        data = ranks.first_alone(lambda: load_dataset(config.data, quiet)) or load_dataset(config.data, quiet)
        source = ConfiguredNetwork(config, data)
        with open_session(config, root, quiet, data, source, shared_dir, ranks) as session:
            yield session


@contextmanager
def open_session(
    config: RunConfig,
    root: Path,
    reporter: Reporter,
    data: Dataset,
    source: NetworkSource,
    shared_dir: Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - immutable
) -> Iterator["Session"]:
    """Go to work in a run directory, with images on any device; all ranks call this together.

    Raises ConfigError (run directory, device, method), and RankError where the first rank could not.
    """
    if ranks.world > 1 and config.method != "bcd":
        raise ConfigError(
            f"torchrun spreads the search of method bcd alone, got method {config.method}; start it without torchrun"
        )
    device = find_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with _repeatable_cudnn(), ExitStack() as stack:
        run = ranks.first_alone(lambda: stack.enter_context(open_run(root, config)))
        run = run or RunDir(root, config.method, config.reference)
        amp = config.amp == "bf16"
        context = StageContext(data.to(device), device, config.seed, run.state, reporter, amp, shared_dir=shared_dir)
        yield Session(config, run, context, source, ranks)


@contextmanager
def _repeatable_cudnn() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def find_device(config: RunConfig) -> torch.device:
    """The device of a run. Raises ConfigError if it asks for CUDA where there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but PyTorch finds no CUDA device; set device to auto or cpu")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _agree(stored: object, expected: object) -> bool:
    """Whether two facts are the same; pixel statistics of a part of the images (data.limit) may differ a little."""
    if isinstance(stored, list) and isinstance(expected, list) and len(stored) == len(expected):
        return all(abs(one - other) < _STATISTICS_TOLERANCE for one, other in zip(stored, expected, strict=True))
    return stored == expected


class Session:
    """One process at work in one run directory, or the ranks of torchrun. Stages give a network on the run's device."""

    def __init__(
        self, config: RunConfig, run: RunDir, context: StageContext, source: NetworkSource, ranks: Ranks
    ) -> None:
        self.config, self.run, self.context, self.source, self.ranks = config, run, context, source, ranks

    def complete(self) -> None:
        """Every stage that is not finished, up to linearized.safetensors; all ranks call this together."""
        ranks, run = self.ranks, self.run
        if ranks.world > 1 and not ranks.agree(run.searched.exists() or run.linearized.exists()):
            ranks.first_alone(self.reference)
            self.searched()
        ranks.first_alone(self.finetuned)
        if ranks.first and self.config.method == "bcd":
            self._tell_search()

    def _tell_search(self) -> None:
        """A line about the steps of the search, and their figure; a search may have had none."""
        # Here, as only this needs matplotlib.
        from linearize.figures import draw_acceptance, read_steps

        log_path, figure_path = self.run.bcd_log, self.run.acceptance
        if not log_path.exists() or not log_path.stat().st_size:
            return
        steps = read_steps(log_path)
        scored = self.config.bcd.score_images or len(self.context.data.train)
        self.context.reporter.log(summarise(steps, self.config.bcd.scoring, min(scored, len(self.context.data.train))))
        if not figure_path.exists():
            draw_acceptance(log_path, figure_path)

    def check_budget(self) -> None:
        """Raise BudgetError if the network has fewer ReLUs than the budget."""
        total = relu_total(self.source.build())
        if self.config.relu_budget > total:
            raise BudgetError(
                f"relu_budget must be at most {total:,} (all of {self._description()}), "
                f"got {self.config.relu_budget:,}; lower it"
            )

    def baseline(self) -> nn.Module:
        """The network with all its ReLUs."""
        given = self.config.baseline_from

        def train(model: nn.Module, context: StageContext) -> dict[str, Any]:
            if given is not None:
                return {"baseline_from": given}
            settings = self.config.baseline
            state = context.state("baseline")
            epochs = fit(model, settings, context, stage="baseline", loss=cross_entropy, augmented=True, state=state)
            return {"epochs": epochs}

        start = self._new_network if given is None else lambda: self._given_baseline(Path(given))
        return self._stage(self.run.baseline, "baseline", start, train)

    def reference(self) -> nn.Module:
        """The network that block coordinate descent starts from."""
        kind = self.config.reference
        if kind == "none":
            return self._full_network()

        def reduce(model: nn.Module, context: StageContext) -> dict[str, Any]:
            budget, settings = self.config.reference_budget, self.config.snl
            if kind == "snl":
                return make_reference(model, self._teacher(), budget, settings, context)
            if budget >= relu_total(model):
                return {}
            task = Task(model, self._teacher(), budget, self.config, context, self.run.root / f"{kind}.jsonl")
            report = find_method(kind)(task)
            check_count(task, kind)
            epochs = finetune(model, task.teacher, settings.finetune, context, stage="reference_finetune")
            return report | {"finetune_epochs": epochs}

        return self._stage(self.run.reference, "reference", self._full_network, reduce)

    def searched(self) -> nn.Module:
        """The network at the budget, before its last finetune."""
        name = self.config.method

        def search(model: nn.Module, context: StageContext) -> dict[str, Any]:
            budget, log_path = self.config.relu_budget, self.run.bcd_log
            task = Task(model, self._teacher(), budget, self.config, context, log_path, self.ranks)
            report = find_method(name)(task)
            check_count(task, name)
            return report

        start = self.reference if name == "bcd" else self._full_network
        return self._stage(self.run.searched, "search", start, search, self.ranks)

    def finetuned(self) -> nn.Module:
        """The linearized network. The only place where test images are looked at."""

        def train(model: nn.Module, context: StageContext) -> dict[str, Any]:
            data = context.data
            done = last_finetune(model, self._teacher(), self.config.finetune, context)
            report = {
                "method": self.config.method,
                "epochs": done.records,
                "baseline_test_accuracy": accuracy(self.baseline(), data, data.test),
                "linearized_test_accuracy": accuracy(model, data, data.test),
            }
            if done.best is not None:
                best = copy.deepcopy(model)
                done.best.write_to(best)
                report |= {
                    "best_val_epoch": done.best.epoch,
                    "best_val_accuracy": done.best.val_accuracy,
                    "best_val_test_accuracy": accuracy(best, data, data.test),
                }
            return report

        return self._stage(self.run.linearized, "finetune", self.searched, train)

    def _stage(
        self,
        path: Path,
        name: str,
        start: Callable[[], nn.Module],
        work: Callable[[nn.Module, StageContext], dict[str, Any]],
        ranks: Ranks = Ranks(),  # noqa: B008 - immutable
    ) -> nn.Module:
        """The network in `path`; where there is none yet, `work` on the network of `start` and write it.

        ranks: those that call this together; by default it is the first one alone.
        """
        state_dir = self.run.state / name
        if not path.exists():
            model = start()
            context = replace(self.context, state_dir=state_dir, meter=Meter())
            with context.meter.watching(model):
                report = work(model, context)
            cost = context.meter.counts()
            seconds = round(sum(part["seconds"] for part in cost.values()), 3)
            facts = report | {"cost": cost, "seconds": seconds}
            ranks.first_alone(lambda: save_checkpoint(path, model, self._metadata(model) | facts))
        # Only now: a stage killed between its last state and its file goes on from the state.
        if self.ranks.first:
            shutil.rmtree(state_dir, ignore_errors=True)
        return self._place(self.source.load(path))

    def _full_network(self) -> nn.Module:
        """The baseline, with what its ReLUs become when they are removed."""
        model = self.baseline()
        match self.config.replacement:
            case "affine":
                use_affine(model)
            case "affine_locations":
                use_affine_locations(model)
            case "identity":
                pass
        return model

    def _given_baseline(self, path: Path) -> nn.Module:
        metadata = read_metadata(path)
        expected = self._description_of_images() | {"relu_count": metadata.get("relu_total")}
        differences = [
            f"its {key} is {metadata.get(key)}, not {value}"
            for key, value in expected.items()
            if not _agree(metadata.get(key), value)
        ]
        if differences:
            raise CheckpointError(
                f"baseline_from {path}: not a baseline of this network and these training images "
                f"({'; '.join(differences)}); name another file or leave it unset"
            )
        return self._place(self.source.load(path))

    def _teacher(self) -> Teacher:
        return Teacher(self.baseline(), self.context.data)

    def _new_network(self) -> nn.Module:
        return self._place(self.source.build())

    def _place(self, model: nn.Module) -> nn.Module:
        use_one_pixel_products(model, self.context.data.input_shape)
        return model.to(self.context.device)

    def _description(self) -> str:
        return f"{self.source.facts['network']} on {'x'.join(map(str, self.context.data.input_shape))} images"

    def _description_of_images(self) -> dict[str, Any]:
        """What two checkpoints must agree in to be the same network for the same images."""
        data: Dataset = self.context.data
        return self.source.facts | {
            "num_classes": data.num_classes,
            "input_shape": list(data.input_shape),
            "mean": list(data.mean),
            "std": list(data.std),
        }

    def _metadata(self, model: nn.Module) -> dict[str, Any]:
        data: Dataset = self.context.data
        return self._description_of_images() | {
            "dataset": data.name,
            "class_names": list(data.class_names),
            "seed": self.config.seed,
            "relu_budget": self.config.relu_budget,
            "relu_count": relu_count(model),
            "val_accuracy": accuracy(model, data, data.val),
            "torch": str(torch.__version__),
        }
