"""What a comparison found: comparison.json, its table over seeds, and the same as CSV.

Legend of accuracies: `last` is the network after the last epoch, which a run writes; `best` the epoch of the last
finetune with the highest validation accuracy. Both are chosen without test images.
"""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from linearize.config import RunConfig, Section
from linearize.errors import CheckpointError
from linearize.files import write_atomic

FORMAT: Literal["pi-pipeline.comparison.1"] = "pi-pipeline.comparison.1"


class CostRecord(Section):
    """What an activity cost a run, over all its stages after the baseline; see `linearize.meter`."""

    forward_images: int = Field(ge=0, description="images sent through the network")
    backward_images: int = Field(ge=0, description="of these, with gradients")
    seconds: float = Field(ge=0, description="wall time")


class CellRecord(Section):
    """A finished run."""

    variant: str
    method: str
    relu_budget: int
    seed: int
    relu_count: int
    last_val_accuracy: float = Field(ge=0, le=100, description="percent")
    best_val_accuracy: float | None = Field(description="percent; none without a finetune")
    best_val_epoch: int | None
    last_test_accuracy: float = Field(ge=0, le=100, description="percent")
    best_test_accuracy: float | None = Field(description="percent, of the best validation epoch")
    search: CostRecord
    finetune: CostRecord
    layer_counts: dict[str, int]
    run_dir: str = Field(description="relative to the comparison's directory")


class Spread(Section):
    """Over seeds. std: with n - 1; none for a single seed."""

    mean: float
    std: float | None


class Row(Section):
    """A variant at a budget, over its finished seeds."""

    variant: str
    method: str
    relu_budget: int
    seeds: int
    last_val_accuracy: Spread
    best_val_accuracy: Spread | None
    last_test_accuracy: Spread
    best_test_accuracy: Spread | None
    nonempty_layers: Spread
    search_images: Spread = Field(description="forward and backward passes of an image in search")
    finetune_images: Spread = Field(description="forward and backward passes of an image in finetuning")
    seconds: Spread


class BaselineRecord(Section):
    """The network that all runs start from."""

    checkpoint: str = Field(description="name of the file")
    relu_total: int
    val_accuracy: float
    test_accuracy: float | None = Field(description="percent; as the runs measured it, none before the first")


class Comparison(Section):
    """comparison.json."""

    format: Literal["pi-pipeline.comparison.1"]
    plan: dict[str, Any]
    total_cells: int
    baseline: BaselineRecord
    cells: list[CellRecord]
    table: list[Row]


def cell_record(
    variant: str, config: RunConfig, run_dir: str, stages: Sequence[dict[str, Any]], final: dict[str, Any]
) -> CellRecord:
    """The record of a finished run.

    stages: metadata of all checkpoints after the baseline, whose costs are added. final: of the linearized network.
    """
    costs = {}
    for activity in ("search", "finetune"):
        parts = [stage["cost"][activity] for stage in stages]
        costs[activity] = CostRecord(
            forward_images=sum(part["forward_images"] for part in parts),
            backward_images=sum(part["backward_images"] for part in parts),
            seconds=round(sum(part["seconds"] for part in parts), 3),
        )
    return CellRecord(
        variant=variant,
        method=config.method,
        relu_budget=config.relu_budget,
        seed=config.seed,
        relu_count=final["relu_count"],
        last_val_accuracy=final["val_accuracy"],
        best_val_accuracy=final.get("best_val_accuracy"),
        best_val_epoch=final.get("best_val_epoch"),
        last_test_accuracy=final["linearized_test_accuracy"],
        best_test_accuracy=final.get("best_val_test_accuracy"),
        search=costs["search"],
        finetune=costs["finetune"],
        layer_counts=final["layer_counts"],
        run_dir=run_dir,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation."""
    return Spread(
        mean=float(statistics.fmean(values)), std=float(statistics.stdev(values)) if len(values) > 1 else None
    )


def tabulate(cells: Sequence[CellRecord]) -> list[Row]:
    """One row for each variant and budget, in order of appearance."""
    groups: dict[tuple[str, int], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault((cell.variant, cell.relu_budget), []).append(cell)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[CellRecord]) -> Row:
    first = group[0]

    def images(activity: str) -> Spread:
        costs: list[CostRecord] = [getattr(cell, activity) for cell in group]
        return spread([cost.forward_images + cost.backward_images for cost in costs])

    def known(values: Sequence[float | None]) -> Spread | None:
        present = [value for value in values if value is not None]
        return spread(present) if present else None

    return Row(
        variant=first.variant,
        method=first.method,
        relu_budget=first.relu_budget,
        seeds=len(group),
        last_val_accuracy=spread([cell.last_val_accuracy for cell in group]),
        best_val_accuracy=known([cell.best_val_accuracy for cell in group]),
        last_test_accuracy=spread([cell.last_test_accuracy for cell in group]),
        best_test_accuracy=known([cell.best_test_accuracy for cell in group]),
        nonempty_layers=spread([sum(count > 0 for count in cell.layer_counts.values()) for cell in group]),
        search_images=images("search"),
        finetune_images=images("finetune"),
        seconds=spread([cell.search.seconds + cell.finetune.seconds for cell in group]),
    )


def to_csv(rows: Sequence[Section]) -> str:
    """Records of one kind as CSV: nested fields are dotted columns, a mapping of layers one column of name=count."""

    def columns(record: Section) -> dict[str, object]:
        flat: dict[str, object] = {}
        for name, value in record.model_dump().items():
            if name == "layer_counts":
                flat[name] = " ".join(f"{layer}={count}" for layer, count in value.items())
            elif isinstance(value, dict):
                flat |= {f"{name}.{key}": part for key, part in value.items()}
            else:
                flat[name] = value
        return flat

    flat = [columns(row) for row in rows]
    header = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write_comparison(directory: Path, comparison: Comparison) -> None:
    """comparison.json, table.csv and cells.csv, each atomically."""
    write_atomic(directory / "comparison.json", comparison.model_dump_json(indent=1).encode() + b"\n")
    write_atomic(directory / "table.csv", to_csv(comparison.table).encode())
    write_atomic(directory / "cells.csv", to_csv(comparison.cells).encode())


def read_comparison(path: Path) -> Comparison:
    """Read and check comparison.json. Raises CheckpointError if it is missing or something else."""
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: no comparison of this program ({reason}); make one with compare") from None
