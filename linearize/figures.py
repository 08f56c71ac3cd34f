"""Figures of a run's steps, drawn from bcd.jsonl."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from linearize.errors import DataError
from linearize.files import write_atomic

_WINDOW = 10


def read_steps(log_path: Path) -> list[dict[str, Any]]:
    """The lines of bcd.jsonl. Raises DataError if there are none or one is torn."""
    try:
        lines = log_path.read_text(encoding="utf-8").splitlines()
        steps: list[dict[str, Any]] = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{log_path}: no readable log of steps ({error}); run linearize first") from None
    if not steps:
        raise DataError(f"{log_path}: no step is logged; a run whose reference meets the budget has none")
    return steps


def success_rate(steps: Sequence[Mapping[str, Any]], window: int = _WINDOW) -> list[float]:
    """For each step the share of steps with an accepted block, over the last `window` steps up to it."""
    accepted = [bool(step["accepted"]) for step in steps]
    recent = [accepted[max(0, end - window) : end] for end in range(1, len(accepted) + 1)]
    return [sum(part) / len(part) for part in recent]


def draw_acceptance(log_path: Path, figure_path: Path) -> None:
    """Draw how often random blocks are accepted, and whether 1 - (1 - p)^RT predicts that a step succeeds.

    Above: the running estimate of p for uniform blocks, where there were any, and the accepted share of each step's
    tries. Below: the predicted success and the measured share of successful steps. The suffix of figure_path decides
    the format. Raises DataError as `read_steps`.
    """
    steps = read_steps(log_path)
    numbers = [step["step"] for step in steps]
    nan = float("nan")
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(numbers, [step.get("acceptance", nan) for step in steps], ".", color="0.6", label="accepted / tries")
    estimates = [nan if step["uniform_p"] is None else step["uniform_p"] for step in steps]
    above.plot(numbers, estimates, color="tab:blue", label="p of random blocks, running estimate")
    above.set_ylabel("probability that a block passes")
    predictions = [nan if step["predicted_success"] is None else step["predicted_success"] for step in steps]
    below.plot(numbers, predictions, color="tab:blue", label="predicted, 1 − (1 − p)^RT")
    below.plot(numbers, success_rate(steps), color="tab:orange", label=f"measured, last {_WINDOW} steps")
    below.set_ylabel("probability that a step succeeds")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.set_ylim(-0.03, 1.03)
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format=figure_path.suffix.removeprefix("."))
    write_atomic(figure_path, content.getvalue())
