"""The road from images to a linearized network: baseline, SNL, BCD, finetune, each resumable.

A stage whose file is there is skipped; an unfinished one goes on from its saved state. All random streams are derived
from the seed and the stage, so an interrupted run ends with the same masks and weights, bit for bit, as an undisturbed
one on the same machine and thread count.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearize.bcd import bcd
from linearize.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from linearize.config import RunConfig
from linearize.data import Dataset, load_dataset
from linearize.errors import BudgetError, ConfigError
from linearize.finetune import finetune
from linearize.networks import DEFAULT_WIDTH, build_network
from linearize.progress import Reporter
from linearize.relu_mask import relu_count, relu_total
from linearize.run_dir import RunDir, open_run
from linearize.small_maps import use_one_pixel_products
from linearize.snl import make_reference
from linearize.stage import StageContext
from linearize.train import Teacher, accuracy, cross_entropy, fit


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
        session.baseline()
        return session.run.baseline


def linearize(config: RunConfig, run_dir: Path, reporter: Reporter | None = None) -> LinearizeResult:
    """Baseline, SNL, BCD and finetune, each unless the run has it already; writes linearized.safetensors.

    Raises as `train_baseline`, and BudgetError if the network has fewer ReLUs than the budget.
    """
    with _session(config, run_dir, reporter or Reporter()) as session:
        session.check_budget()
        session.finetuned()
        metadata = read_metadata(session.run.linearized)
        return LinearizeResult(
            checkpoint=session.run.linearized,
            relu_total=metadata["relu_total"],
            relu_count=metadata["relu_count"],
            baseline_test_accuracy=metadata["baseline_test_accuracy"],
            linearized_test_accuracy=metadata["linearized_test_accuracy"],
        )


@contextmanager
def _session(config: RunConfig, root: Path, reporter: Reporter) -> Iterator["_Session"]:
    device = _device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    data = load_dataset(config.data, reporter)
    with open_run(root, config) as run:
        yield _Session(config, run, StageContext(data.to(device), device, config.seed, run.state, reporter))


def _device(config: RunConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but PyTorch finds no CUDA device; set device to auto or cpu")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


class _Session:
    """One process at work in one run directory."""

    def __init__(self, config: RunConfig, run: RunDir, context: StageContext) -> None:
        self.config, self.run, self.context = config, run, context

    def check_budget(self) -> None:
        """Raise BudgetError if the network has fewer ReLUs than the budget."""
        total = relu_total(self._new_network())
        if self.config.relu_budget > total:
            raise BudgetError(
                f"relu_budget must be at most {total:,} (all of {self._description()}), "
                f"got {self.config.relu_budget:,}; lower it"
            )

    def baseline(self) -> nn.Module:
        """The network with all its ReLUs."""

        def train(model: nn.Module) -> dict[str, Any]:
            settings = self.config.baseline
            state = self.context.state("baseline")
            epochs = fit(
                model, settings, self.context, stage="baseline", loss=cross_entropy, augmented=True, state=state
            )
            return {"epochs": epochs}

        return self._stage(self.run.baseline, self._new_network, train, "baseline")

    def reference(self) -> nn.Module:
        """The SNL network that BCD starts from."""

        def reduce(model: nn.Module) -> dict[str, Any]:
            return make_reference(model, self._teacher(), self.config.reference_budget, self.config.snl, self.context)

        return self._stage(self.run.reference, self.baseline, reduce, "snl_masks", "snl_finetune")

    def searched(self) -> nn.Module:
        """The network at the budget, before its last finetune."""

        def search(model: nn.Module) -> dict[str, Any]:
            config = self.config
            return bcd(model, self._teacher(), config.relu_budget, config.bcd, self.context, self.run.bcd_log)

        return self._stage(self.run.searched, self.reference, search, "bcd", "bcd_finetune")

    def finetuned(self) -> nn.Module:
        """The linearized network."""

        def train(model: nn.Module) -> dict[str, Any]:
            epochs = finetune(model, self._teacher(), self.config.finetune, self.context, stage="finetune")
            data = self.context.data
            return {
                "epochs": epochs,
                "baseline_test_accuracy": accuracy(self.baseline(), data, data.test),
                "linearized_test_accuracy": accuracy(model, data, data.test),
            }

        return self._stage(self.run.linearized, self.searched, train, "finetune")

    def _stage(
        self,
        path: Path,
        start: Callable[[], nn.Module],
        work: Callable[[nn.Module], dict[str, Any]],
        *states: str,
    ) -> nn.Module:
        """The network in `path`; where there is none yet, `work` on the network of `start` and write it."""
        if not path.exists():
            model = start()
            started = time.monotonic()
            report = work(model)
            seconds = time.monotonic() - started
            save_checkpoint(path, model, self._metadata(model) | report | {"seconds": round(seconds, 3)})
        for name in states:
            self.context.state(name).clear()
        return self._place(load_checkpoint(path)[0])

    def _teacher(self) -> Teacher:
        return Teacher(self.baseline(), self.context.data)

    def _new_network(self) -> nn.Module:
        network, data = self.config.network, self.context.data
        model = build_network(network.name, network.width, data.num_classes, data.input_shape, seed=self.config.seed)
        return self._place(model)

    def _place(self, model: nn.Module) -> nn.Module:
        use_one_pixel_products(model, self.context.data.input_shape)
        return model.to(self.context.device)

    def _description(self) -> str:
        return f"{self.config.network.name} on {'x'.join(map(str, self.context.data.input_shape))} images"

    def _metadata(self, model: nn.Module) -> dict[str, Any]:
        data: Dataset = self.context.data
        network = self.config.network
        return {
            "network": network.name,
            "width": network.width or DEFAULT_WIDTH[network.name],
            "num_classes": data.num_classes,
            "input_shape": list(data.input_shape),
            "dataset": data.name,
            "class_names": list(data.class_names),
            "mean": list(data.mean),
            "std": list(data.std),
            "seed": self.config.seed,
            "relu_budget": self.config.relu_budget,
            "relu_count": relu_count(model),
            "val_accuracy": accuracy(model, data, data.val),
            "torch": str(torch.__version__),
        }
