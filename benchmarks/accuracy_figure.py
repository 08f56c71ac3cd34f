"""Accuracy along the descent from the networks around it, as the run's log has it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.plots import Axis, Mark, Plot, Series
from benchmarks.run_files import Step, Trajectory
from benchmarks.units import count

# More dots than this run into one another; the line alone says it then.
MOST_DOTS = 60


def accuracy_plot(trajectory: Trajectory) -> Plot:
    """Accuracy (percent) against kept ReLUs along the descent, with the networks around it as reference."""
    start = [trajectory.reference] if trajectory.reference else []
    path = [*start, *trajectory.steps]
    tuned = [step for step in trajectory.steps if step.finetuned]
    plain = [step for step in trajectory.steps if not step.finetuned]
    dots = "solid" if len(trajectory.steps) <= MOST_DOTS else "none"
    training = tuple(
        Mark(x=float(step.relu_count), y=step.train_accuracy)
        for step in trajectory.steps
        if step.train_accuracy is not None
    )
    series = [
        Series(name="training", kind="training", marks=training, colour="full", dot="none", stroke="solid"),
        Series(name="validation", kind="path", marks=_marks(path), colour="accent", dot="none", stroke="solid"),
    ]
    if dots == "solid":
        series.append(Series(name="accepted step", kind="validation", marks=_marks(plain), colour="accent", radius=3.2))
        series.append(
            Series(
                name="step with finetuning",
                kind="validation",
                marks=_marks(tuned),
                colour="accent",
                dot="hollow",
                radius=3.2,
            )
        )
    if start:
        series.append(
            Series(name="SNL, where it starts", kind="validation", marks=_marks(start), colour="ink", radius=5)
        )
    if trajectory.final:
        final = _marks([trajectory.final])
        series.append(Series(name="after the last finetuning", kind="validation", marks=final, colour="good", radius=6))
    if trajectory.baseline:
        ends = [mark.x for one in series for mark in one.marks]
        y = trajectory.baseline.val_accuracy
        series.append(
            Series(
                name=f"baseline, {count(trajectory.baseline.relu_count)} ReLUs",
                kind="validation",
                marks=(Mark(x=min(ends), y=y), Mark(x=max(ends), y=y)),
                colour="soft",
                dot="none",
                stroke="dashed",
            )
        )
    return Plot(
        key="accuracy-descent",
        title="Accuracy along the descent",
        alt=_description(trajectory),
        x=Axis(label="ReLUs kept", unit="ReLUs"),
        y=Axis(label="accuracy, %", unit="percent"),
        series=tuple(one for one in series if one.marks),
    )


def _marks(steps: Iterable[Step]) -> tuple[Mark, ...]:
    return tuple(Mark(x=float(step.relu_count), y=step.val_accuracy) for step in steps)


def _description(trajectory: Trajectory) -> str:
    first, last = trajectory.steps[0], trajectory.steps[-1]
    text = (
        f"Validation accuracy along {len(trajectory.steps)} steps of block coordinate descent, from"
        f" {first.val_accuracy:.1f} % at {count(first.relu_count)} ReLUs to {last.val_accuracy:.1f} % at"
        f" {count(last.relu_count)}"
    )
    if trajectory.final:
        text += f"; {trajectory.final.val_accuracy:.1f} % after the last finetuning"
    if trajectory.baseline:
        text += f"; the baseline has {trajectory.baseline.val_accuracy:.1f} %"
    return text
