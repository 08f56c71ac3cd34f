"""The verb ``compare``: a grid of linearizations on one baseline, with a table and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pi_runtime.cli.lists import split_names, whole_numbers

if TYPE_CHECKING:
    from linearize.compare_plan import Plan
    from linearize.comparison import Comparison, Spread

_TABLE_WIDTH = 120


@click.command()
@click.option("--plan", type=click.Path(path_type=Path), help="YAML file of variants, budgets and seeds")
@click.option("--config", type=click.Path(path_type=Path), help="instead of --plan: YAML file of a run's settings")
@click.option("--methods", help="with --config: methods, separated by commas, each with the settings of the config")
@click.option("--variants", help="with --plan: only these of its variants, separated by commas")
@click.option("--budgets", help="ReLUs kept, separated by commas  [those of the plan]")
@click.option("--seeds", help="seeds, separated by commas  [those of the plan, or 0]")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="checkpoint that all runs start from  [the plan's, or trained]"
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="directory of the images")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="directory of the runs and the table")
def compare(
    plan: Path | None,
    config: Path | None,
    methods: str | None,
    variants: str | None,
    budgets: str | None,
    seeds: str | None,
    baseline: Path | None,
    data_dir: Path | None,
    output: Path,
) -> None:
    """Linearize with several methods, budgets and seeds from one baseline; goes on where it stopped.

    Writes comparison.json, table.csv, cells.csv and figures into the output directory after every finished run.
    """
    from linearize.compare import compare as run_comparison
    from linearize.compare_plan import load_plan, plan_of_methods

    if plan is not None:
        if config is not None or methods is not None:
            raise click.UsageError("--config and --methods do not go with --plan")
        wanted = load_plan(plan)
        if variants is not None:
            wanted = _select(wanted, split_names(variants))
    elif methods is None or budgets is None:
        raise click.UsageError("give either --plan, or --methods and --budgets (and a --config)")
    elif variants is not None:
        raise click.UsageError("--variants goes with --plan only")
    else:
        wanted = plan_of_methods(config, split_names(methods), whole_numbers("--budgets", budgets), [0])
    changes: dict[str, object] = {}
    if budgets is not None:
        changes["budgets"] = list(whole_numbers("--budgets", budgets))
    if seeds is not None:
        changes["seeds"] = list(whole_numbers("--seeds", seeds))
    if baseline is not None:
        changes["baseline"] = str(baseline)
    if data_dir is not None:
        changes["overrides"] = {**wanted.overrides, "data.data_dir": str(data_dir)}
    wanted = type(wanted).model_validate(wanted.model_dump() | changes)
    found = run_comparison(wanted, output)
    _print(found)
    document = {"output": str(output), "cells": len(found.cells), "baseline": found.baseline.model_dump()}
    click.echo(json.dumps(document | {"table": [row.model_dump() for row in found.table]}))


def add_compare_verb(group: click.Group) -> None:
    """Adds ``compare`` to ``group``."""
    group.add_command(compare)


def _select(plan: Plan, variants: list[str]) -> Plan:
    from linearize.errors import ConfigError

    if not variants:
        raise ConfigError(f"--variants names no variant; give some of {', '.join(plan.variants)}")
    for name in variants:
        if name not in plan.variants:
            raise ConfigError(f"--variants must be among {', '.join(plan.variants)}, got {name!r}")
    return plan.model_copy(update={"variants": {name: plan.variants[name] for name in variants}})


def _print(found: Comparison) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"test accuracy in percent, mean and standard deviation over seeds ({len(found.cells)} runs)",
        caption="images: passes forward and backward; last epoch, best validation epoch",
        box=SIMPLE,
        pad_edge=False,
    )
    table.add_column("variant", overflow="fold")
    for name in (
        "ReLUs",
        "seeds",
        "last",
        "best",
        "validation",
        "layers",
        "images\nsearch",
        "images\nfinetune",
        "seconds",
    ):
        table.add_column(name, justify="right", overflow="fold")
    for row in found.table:
        table.add_row(
            row.variant,
            f"{row.relu_budget:,}",
            str(row.seeds),
            _percent(row.last_test_accuracy),
            _percent(row.best_test_accuracy),
            _percent(row.last_val_accuracy),
            f"{row.nonempty_layers.mean:g}",
            f"{row.search_images.mean:,.0f}",
            f"{row.finetune_images.mean:,.0f}",
            f"{row.seconds.mean:,.0f}",
        )
    console = Console(stderr=True, highlight=False)
    # Folding "mean ± deviation" into a narrow column would make it unreadable: rather let the terminal break the line.
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.2f}" if spread.std is None else f"{spread.mean:.2f} ± {spread.std:.2f}"
