"""What a run directory tells beside its results: the steps of the linearization and the checkpoints' own figures.

All of it is optional. A network that was linearized elsewhere has none of these files, and its report lacks the figure.
Accuracies here are in percent, as the files have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


@dataclass(frozen=True, kw_only=True)
class Step:
    """The network after one step: kept ReLUs, accuracy on training and validation images, whether it was finetuned."""

    relu_count: int
    train_accuracy: float | None
    val_accuracy: float
    finetuned: bool = False


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The steps of block coordinate descent, in their order, and the networks around them.

    baseline: all ReLUs. reference: where the descent started (SNL). final: after the last finetuning.
    """

    steps: tuple[Step, ...]
    baseline: Step | None
    reference: Step | None
    final: Step | None


def read_trajectory(run_dir: Path) -> Trajectory | None:
    """Reads ``bcd.jsonl`` and the checkpoints' headers; None where there is no step to show.

    A line that is torn (the run was killed while it wrote) or lacks a figure is left out.
    """
    try:
        lines = (run_dir / "bcd.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    steps = tuple(step for line in lines if (step := _step(_object(line))) is not None)
    if not steps:
        return None
    return Trajectory(
        steps=steps,
        baseline=_step(_checkpoint_facts(run_dir / "baseline.safetensors")),
        reference=_step(_checkpoint_facts(run_dir / "snl.safetensors")),
        final=_step(_checkpoint_facts(run_dir / "linearized.safetensors")),
    )


def _step(facts: Mapping[str, Any]) -> Step | None:
    relu_count, val_accuracy = facts.get("relu_count"), _number(facts.get("val_accuracy"))
    if type(relu_count) is not int or val_accuracy is None:
        return None
    return Step(
        relu_count=relu_count,
        train_accuracy=_number(facts.get("train_accuracy")),
        val_accuracy=val_accuracy,
        finetuned=facts.get("finetuned") is True,
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def _object(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _checkpoint_facts(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
    return _object(header.get("document", "{}"))
