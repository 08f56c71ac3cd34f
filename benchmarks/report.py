"""One self-contained ``report.html`` from a results document and what lies beside it, and its figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import labels, views
from benchmarks.accuracy_figure import accuracy_plot
from benchmarks.answers import answers
from benchmarks.bars import LATENCY, TRAFFIC
from benchmarks.cost_figures import cost_plots
from benchmarks.fit import cost_lines
from benchmarks.gallery import Figure, distinct, save_gallery
from benchmarks.headline import AGREEMENT_FLOOR, problems
from benchmarks.kept_maps import map_figures
from benchmarks.law_figures import law_figures
from benchmarks.law_view import law_view
from benchmarks.layer_views import mask_tables
from benchmarks.link_facts import link_facts
from benchmarks.page import render
from benchmarks.pareto import pareto_plots
from benchmarks.ratios import ratios
from benchmarks.raw_tables import RawTable, law_tables
from benchmarks.results_file import load_results
from benchmarks.run_files import Trajectory, read_trajectory
from benchmarks.schema import Results
from benchmarks.tables import print_tables
from benchmarks.ten_times import ten_times
from benchmarks.tiles import tiles
from pi_runtime.files import write_text

__all__ = ["print_tables", "save_figures", "write_report"]

RESULTS, REPORT, FIGURES = "results.json", "report.html", "figures"


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What a place holds: the results, the log of the linearization beside them, and where the report goes."""

    source: Path
    results: Results
    trajectory: Trajectory | None

    @property
    def page(self) -> Path:
        return self.source.parent / REPORT if self.source.name == RESULTS else self.source.with_suffix(".html")

    @property
    def directory(self) -> str:
        return FIGURES if self.source.name == RESULTS else f"{self.source.stem}-{FIGURES}"


def write_report(place: Path, *, gallery: bool = True) -> Path:
    """Writes a report from results and, where they are, the ``bcd.jsonl`` and the checkpoints' headers beside them.

    Nothing but the directory is read, and the page loads nothing from elsewhere.

    Args:
        place: a directory with a ``results.json``, whose report is ``report.html`` with its figures in ``figures``; or
            a results file of any other name, ``NAME.json``, with ``NAME.html`` and ``NAME-figures``.
        gallery: write the figures too, PNG and CSV of each.

    Raises:
        ResultsError: there are no results, or they are damaged.
        ConfigError: the report cannot be written.
    """
    report = _open(place)
    content = _content(report)
    write_text(report.page, render("report.html", content))
    if gallery:
        save_gallery(content["figures"], report.source.parent / report.directory)
    return report.page


def save_figures(place: Path, keys: Sequence[str]) -> tuple[Path, ...]:
    """Writes the figures of those keys alone, PNG and CSV; returns their paths.

    Raises:
        ReportError: the report has no such figure.
        ResultsError, ConfigError: as :func:`write_report`.
    """
    report = _open(place)
    return save_gallery(_content(report)["figures"], report.source.parent / report.directory, keys)


def _open(place: Path) -> _Report:
    source = place if place.suffix == ".json" and not place.is_dir() else place / RESULTS
    return _Report(source=source, results=load_results(source), trajectory=read_trajectory(source.parent))


def _content(report: _Report) -> dict[str, Any]:
    """What the template shows, by the names that it uses."""
    results = report.results
    backends = views.backend_views(results)
    fewer = ten_times(results)
    costs, pareto, maps = cost_plots(results), pareto_plots(results), map_figures(results)
    descent = accuracy_plot(report.trajectory) if report.trajectory else None
    shown = labels.headline_subject(results)
    figures: list[Figure] = [entry.chart for entry in fewer if entry.chart is not None]
    law = law_view(results)
    drawn = law_figures(results, law)
    figures += [*costs, *([drawn.predicted] if drawn.predicted else []), *drawn.floors, *law_tables(law)]
    figures += [*pareto, *([descent] if descent else [])]
    for backend in backends:
        figures += [*backend.charts, *backend.layers]
    figures += maps
    return {
        "results": results,
        "answers": answers(results),
        "networks": results.networks,
        "links": link_facts(results),
        "source": report.source.name,
        "directory": report.directory,
        "shown": shown,
        "kinds": {"mask": labels.MASKS, "weights": labels.WEIGHTS, "images": labels.IMAGES},
        "several_models": len({subject.model for subject in results.subjects}) > 1,
        "any_modelled": any(row.kind == "modelled" for row in results.rows),
        "problems": problems(results),
        "agreement_floor": AGREEMENT_FLOOR,
        "tiles": tiles(results),
        "fewer": fewer,
        "traffic": TRAFFIC,
        "latency": LATENCY,
        "cost_plots": costs,
        "lines": cost_lines(results),
        "law": law,
        "law_figures": drawn,
        "trained": sum(s.weights == "trained" and s.test_accuracy is not None for s in results.subjects),
        "pareto": pareto,
        "descent": descent,
        "ratios": ratios(results),
        "backends": backends,
        # One open for each backend: the network that the page is about, online.
        "open_layers": {next((f.key for f in b.layers if f.subject == shown), "") for b in backends},
        "map_figures": maps,
        "masks": mask_tables(results),
        "figures": (named := distinct(figures)),
        "tables": {figure.key for figure in named if isinstance(figure, RawTable)},
    }
