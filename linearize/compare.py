"""A grid of linearizations on one baseline, one run after another; goes on where it stopped.

    OUTPUT/baseline/         run directory of the baseline, where none was given
    OUTPUT/cells/<variant>-<budget>-seed<seed>/    a run directory each
    OUTPUT/comparison.json, table.csv, cells.csv, *.png    rewritten after every finished run

A finished run is read, not run again; an unfinished one resumes by itself. Several processes may share an output
directory if their seeds, budgets or variants differ; a last call for the whole grid then writes the whole table.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from linearize.checkpoint import read_metadata
from linearize.compare_figures import draw_figures
from linearize.compare_plan import Cell, Plan, baseline_config, cells
from linearize.comparison import (
    FORMAT,
    BaselineRecord,
    CellRecord,
    Comparison,
    cell_record,
    tabulate,
    write_comparison,
)
from linearize.config import RunConfig, flatten
from linearize.files import write_atomic
from linearize.progress import Reporter
from linearize.run import run_linearization, train_baseline
from linearize.run_dir import RunDir, open_run

# Settings that a reference network does not depend on.
_AFTER_REFERENCE = ("bcd.", "finetune.", "sensitivity.", "layer_culling.", "relu_budget", "snl.reference_budget")
# Further settings that SNL's mask phase does not depend on.
_AFTER_MASK_PHASE = ("snl.finetune.", "taylor.", "gradual.", "autorep.")


def compare(plan: Plan, output: Path, reporter: Reporter | None = None) -> Comparison:
    """Run what is not finished of a plan and write the comparison; returns it.

    Raises ConfigError (plan, settings, directories), and what the runs raise.
    """
    reporter = reporter or Reporter()
    # All settings are checked before the first training.
    baseline_path = plan.baseline or str(output / "baseline" / "baseline.safetensors")
    grid = cells(plan, baseline_path)
    output.mkdir(parents=True, exist_ok=True)
    if plan.baseline is None:
        train_baseline(baseline_config(plan), output / "baseline", reporter)
    facts = read_metadata(Path(baseline_path))
    baseline = BaselineRecord(
        checkpoint=Path(baseline_path).name,
        relu_total=facts["relu_total"],
        val_accuracy=facts["val_accuracy"],
        test_accuracy=None,
    )
    done: list[CellRecord] = []
    for number, cell in enumerate(grid):
        run_dir = output / "cells" / cell.directory
        reporter.log(f"compare: {number + 1}/{len(grid)}, {cell.directory}")
        finished = _is_finished(run_dir, cell.config)
        if not finished:
            _share_reference(run_dir, cell, [other for other in grid if other is not cell], output)
            shared_dir = output / "shared" / _trajectory_name(cell.config)
            run_linearization(cell.config, run_dir, reporter, shared_dir=shared_dir)
        final = read_metadata(run_dir / "linearized.safetensors")
        baseline = baseline.model_copy(update={"test_accuracy": final["baseline_test_accuracy"]})
        done.append(_read_cell(cell, run_dir, output, final))
        comparison = Comparison(
            format=FORMAT,
            plan=plan.as_record(),
            total_cells=len(grid),
            baseline=baseline,
            cells=done,
            table=tabulate(done),
        )
        if not finished or number == len(grid) - 1:
            write_comparison(output, comparison)
            draw_figures(comparison, output, plan.published)
    return comparison


def _is_finished(run_dir: Path, config: RunConfig) -> bool:
    """Whether a run is finished. Raises ConfigError if the directory holds a run of another config."""
    run = RunDir(run_dir, config.method, config.reference)
    if not run.linearized.exists():
        return False
    with open_run(run_dir, config):
        return True


def _share_reference(run_dir: Path, cell: Cell, others: Iterable[Cell], output: Path) -> None:
    """Copy the reference network of another run that would make the same one, if there is such a run."""
    wanted = RunDir(run_dir, cell.config.method, cell.config.reference).reference
    if not _has_reference(cell.config) or wanted.exists():
        return
    for other in others:
        made = RunDir(output / "cells" / other.directory, other.config.method, other.config.reference).reference
        if _has_reference(other.config) and made.exists() and _same_reference(cell.config, other.config):
            with open_run(run_dir, cell.config):
                write_atomic(wanted, made.read_bytes())
            return


def _has_reference(config: RunConfig) -> bool:
    return config.method == "bcd" and config.reference != "none"


def _same_reference(one: RunConfig, other: RunConfig) -> bool:
    return (one.reference_budget, _before_budget(one)) == (other.reference_budget, _before_budget(other))


def _before_budget(config: RunConfig) -> dict[str, object]:
    """The settings on which a mask phase depends that goes on until its budget, whatever that is, is met."""
    settings = dict(flatten(config.model_dump()))
    return {key: value for key, value in settings.items() if not key.startswith(_AFTER_REFERENCE)}


def _trajectory_name(config: RunConfig) -> str:
    """Names the mask phase of SNL that a run takes a part of, also where it is that of a reference network."""
    settings = _before_budget(config)
    matters = {key: value for key, value in settings.items() if key not in ("method", "reference")}
    mask_phase = {key: value for key, value in matters.items() if not key.startswith(_AFTER_MASK_PHASE)}
    return hashlib.sha256(json.dumps(mask_phase, sort_keys=True).encode()).hexdigest()[:16]


def _read_cell(cell: Cell, run_dir: Path, output: Path, final: dict[str, Any]) -> CellRecord:
    run = RunDir(run_dir, cell.config.method, cell.config.reference)
    stages = [read_metadata(run.searched), final]
    if _has_reference(cell.config):
        stages.append(read_metadata(run.reference))
    return cell_record(cell.variant, cell.config, str(run_dir.relative_to(output)), stages, final)
