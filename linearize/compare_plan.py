"""What is compared: variants of methods, ReLU budgets and seeds, over one base config; read from YAML.

A plan::

    base: ../cifar10_resnet18_width16.yaml      # a run's config; relative to the plan
    overrides: {finetune: {epochs: 8}}          # over the base, for every variant
    variants:                                   # name: what differs from the base
      snl: {method: snl}
      paper: {method: bcd, bcd: {rt: 50}}
    budgets: [7500, 3000]
    seeds: [0, 1]
    baseline: baseline.safetensors              # optional; without it one is trained for all
    published: cifar10                          # optional; whose published points the figures show
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from linearize.config import RunConfig, Section, flatten, load_config, read_yaml
from linearize.errors import ConfigError
from linearize.methods.registry import method_names
from linearize.published import PublishedDataset

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Plan(Section):
    """A grid of runs; see the module's description."""

    base: str | None = Field(None, description="config of a run; unset: the defaults")
    overrides: dict[str, Any] = Field({}, description="settings over the base, for every variant")
    variants: dict[str, dict[str, Any]] = Field(description="settings over these, by name of the variant", min_length=1)
    budgets: list[int] = Field(description="ReLUs kept", min_length=1)
    seeds: list[int] = Field([0], description="seeds of search and finetuning; the baseline is the same", min_length=1)
    baseline: str | None = Field(None, description="checkpoint of the baseline; unset: train it")
    published: PublishedDataset | None = Field(None, description="whose published points the figures show")

    @field_validator("variants")
    @classmethod
    def _names_are_file_names(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in variants:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} must be letters, digits and _ . + -")
        return variants

    @field_validator("budgets", "seeds")
    @classmethod
    def _no_value_twice(cls, values: list[int]) -> list[int]:
        if len(set(values)) < len(values):
            raise ValueError("no value may come twice")
        return values

    def as_record(self) -> dict[str, Any]:
        """What a comparison tells of it: files by name, no directory of the machine that it ran on."""
        settings = {key: value for key, value in flatten(self.overrides) if key != "data.data_dir"}
        names = {key: Path(value).name for key in ("base", "baseline") if (value := getattr(self, key)) is not None}
        return self.model_dump() | {"overrides": settings} | names


@dataclass(frozen=True)
class Cell:
    """One run of the grid. directory: its name below cells/."""

    variant: str
    config: RunConfig
    directory: str


def load_plan(path: Path) -> Plan:
    """Read a plan. Paths in it are relative to the file.

    Raises ConfigError, in one line: unreadable, unknown keys, wrong types, bad names.
    """
    try:
        plan = Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        raise _explain(error, str(path)) from None
    placed = {
        key: str(path.parent / value) for key in ("base", "baseline") if (value := getattr(plan, key)) is not None
    }
    return plan.model_copy(update=placed)


def plan_of_methods(config: Path | None, methods: Sequence[str], budgets: Sequence[int], seeds: Sequence[int]) -> Plan:
    """A plan with one variant a method, each with the settings of one config."""
    for method in methods:
        if method not in method_names():
            raise ConfigError(f"methods must be among {', '.join(method_names())}, got {method!r}")
    tree: dict[str, Any] = {
        "variants": {method: {"method": method} for method in methods},
        "budgets": list(budgets),
        "seeds": list(seeds),
    }
    if config is not None:
        tree["base"] = str(config)
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, "the comparison") from None


def cells(plan: Plan, baseline: str) -> list[Cell]:
    """All runs, those of the first seed first, and of a seed those of the first budget, so that a part is comparable.

    baseline: checkpoint. Raises ConfigError for settings that are wrong in any of them.
    """
    grid = []
    for seed in plan.seeds:
        for budget in plan.budgets:
            for variant in plan.variants:
                config = _config(plan, variant, relu_budget=budget, seed=seed, baseline_from=baseline)
                grid.append(Cell(variant, config, f"{variant}-{budget}-seed{seed}"))
    return grid


def baseline_config(plan: Plan) -> RunConfig:
    """The config of the run that trains the baseline: the base, at the first seed."""
    return _config(plan, None, relu_budget=max(plan.budgets), seed=plan.seeds[0])


def _config(plan: Plan, variant: str | None, **fixed: object) -> RunConfig:
    settings = dict(flatten(plan.overrides))
    if variant is not None:
        settings |= dict(flatten(plan.variants[variant]))
    try:
        return load_config(Path(plan.base) if plan.base else None, settings | fixed)
    except ConfigError as error:
        where = f"variant {variant}" if variant is not None else "base"
        raise ConfigError(f"{where}: {error}") from None


def _explain(error: ValidationError, where: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    known = "" if first["type"] != "extra_forbidden" else f"; valid keys are {', '.join(Plan.model_fields)}"
    return ConfigError(f"{where}: {key}: {first['msg'].lower()}{known}; see configs/compare/")
