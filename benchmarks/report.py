"""One self-contained ``report.html`` from the files of a run directory."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import units, views
from benchmarks.figures import accuracy_chart
from benchmarks.headline import AGREEMENT_FLOOR, problems
from benchmarks.run_files import read_trajectory
from benchmarks.schema import load_results
from benchmarks.tables import print_tables
from pi_runtime.files import write_text

__all__ = ["print_tables", "write_report"]

RESULTS, REPORT = "results.json", "report.html"


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` from ``results.json`` and, where they are, ``bcd.jsonl`` and the checkpoints' headers.

    Nothing but the run directory is read, and the page loads nothing from elsewhere.

    Raises:
        ResultsError: there are no results, or they are damaged.
        ConfigError: the report cannot be written.
    """
    results = load_results(run_dir / RESULTS)
    trajectory = read_trajectory(run_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": units.count,
        "seconds": units.seconds,
        "bytes": units.bytes_,
        "percent": units.percent,
        "significant": units.significant,
    }
    page = environment.get_template("report.html").render(
        results=results,
        problems=problems(results),
        agreement_floor=AGREEMENT_FLOOR,
        tiles=views.tiles(results),
        backends=views.backend_views(results),
        graph_labels=views.GRAPH_LABELS,
        trajectory=trajectory,
        # The same chart twice: text in a scaled-down drawing would be too small to read on a phone.
        wide_chart=accuracy_chart(trajectory, width=860, height=340) if trajectory else "",
        narrow_chart=accuracy_chart(trajectory, width=350, height=280) if trajectory else "",
        largest_layer=max((layer.elements for layer in results.relu_layers), default=1),
    )
    path = run_dir / REPORT
    write_text(path, page)
    return path
