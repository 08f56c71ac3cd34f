"""Figures of a comparison: test accuracy against ReLU budget, and the same as a share of the baseline's.

Published points are drawn in grey and named; their ReLU counts are those of their own networks, so beside a narrower
network they only show the shape.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from linearize.comparison import Comparison, Row
from linearize.files import write_atomic
from linearize.published import PublishedDataset, published

_MARKERS = "osD^vP*Xp<>h"


def draw_figures(comparison: Comparison, directory: Path, dataset: PublishedDataset | None) -> list[Path]:
    """Write accuracy.png, and relative.png once the baseline's test accuracy is known; returns their paths.

    With one budget the variants stand side by side, as an ablation wants it; with several each is a curve.
    """
    curves = len({row.relu_budget for row in comparison.table}) > 1
    written = [_save(_accuracy(comparison.table, curves, dataset), directory / "accuracy.png")]
    baseline = comparison.baseline.test_accuracy
    if curves and baseline is not None:
        written.append(_save(_relative(comparison.table, baseline), directory / "relative.png"))
    return written


def _accuracy(table: Sequence[Row], curves: bool, dataset: PublishedDataset | None) -> Figure:
    figure, axes = _axes("test accuracy, %")
    if curves:
        _draw_curves(axes, table, 1.0)
        for curve in published(dataset) if dataset is not None else ():
            budgets = [1000 * budget for budget, _ in curve.points]
            accuracies = [accuracy for _, accuracy in curve.points]
            axes.plot(budgets, accuracies, "--", color="0.7", linewidth=0.8, zorder=0)
            axes.plot(budgets, accuracies, ".", color="0.6", markersize=4, zorder=0)
            axes.annotate(f"{curve.name} (published)", (budgets[-1], accuracies[-1]), fontsize=6, color="0.4")
        axes.legend(fontsize=7)
    else:
        names = [row.variant for row in table]
        means = [row.last_test_accuracy.mean for row in table]
        errors = [row.last_test_accuracy.std or 0.0 for row in table]
        axes.errorbar(names, means, yerr=errors, fmt="o", capsize=3)
        axes.set_xlabel(f"variant, at {table[0].relu_budget:,} ReLUs" if table else "variant")
        axes.tick_params(axis="x", rotation=45)
    return figure


def _relative(table: Sequence[Row], baseline: float) -> Figure:
    figure, axes = _axes("test accuracy over that of the baseline")
    _draw_curves(axes, table, 1 / baseline)
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.legend(fontsize=7)
    return figure


def _axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw_curves(axes: Axes, table: Sequence[Row], scale: float) -> None:
    variants = list(dict.fromkeys(row.variant for row in table))
    for number, variant in enumerate(variants):
        rows = sorted((row for row in table if row.variant == variant), key=lambda row: row.relu_budget)
        axes.errorbar(
            [row.relu_budget for row in rows],
            [row.last_test_accuracy.mean * scale for row in rows],
            yerr=[(row.last_test_accuracy.std or 0.0) * scale for row in rows],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            capsize=3,
            label=variant,
        )
    axes.set_xscale("log")
    budgets = sorted({row.relu_budget for row in table})
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("ReLUs")


def _save(figure: Figure, path: Path) -> Path:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_atomic(path, image.getvalue())
    return path
