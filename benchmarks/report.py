"""One self-contained ``report.html`` from a results document and what lies beside it."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import labels, units, views
from benchmarks.cost_figures import cost_charts
from benchmarks.figures import accuracy_chart
from benchmarks.fit import cost_lines
from benchmarks.headline import AGREEMENT_FLOOR, problems
from benchmarks.layer_views import mask_tables
from benchmarks.ratios import ratios
from benchmarks.results_file import load_results
from benchmarks.run_files import read_trajectory
from benchmarks.tables import print_tables
from benchmarks.tiles import tiles
from pi_runtime.files import write_text

__all__ = ["print_tables", "write_report"]

RESULTS, REPORT = "results.json", "report.html"


def write_report(place: Path) -> Path:
    """Writes a report from results and, where they are, the ``bcd.jsonl`` and the checkpoints' headers beside them.

    Nothing but the directory is read, and the page loads nothing from elsewhere.

    Args:
        place: a directory with a ``results.json``, whose report is ``report.html``; or a results file of any name,
            whose report has that name with the ending ``.html``.

    Raises:
        ResultsError: there are no results, or they are damaged.
        ConfigError: the report cannot be written.
    """
    source = place if place.suffix == ".json" and not place.is_dir() else place / RESULTS
    results = load_results(source)
    trajectory = read_trajectory(source.parent)
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
        "amount": units.amount,
        "label": labels.subject_label,
    }
    page = environment.get_template("report.html").render(
        results=results,
        shown=labels.headline_subject(results),
        kinds={"mask": labels.MASKS, "weights": labels.WEIGHTS, "images": labels.IMAGES},
        problems=problems(results),
        agreement_floor=AGREEMENT_FLOOR,
        tiles=tiles(results),
        backends=views.backend_views(results),
        ratios=ratios(results),
        lines=cost_lines(results),
        cost_charts=cost_charts(results),
        masks=mask_tables(results),
        trajectory=trajectory,
        # The same chart twice: text in a scaled-down drawing would be too small to read on a phone.
        wide_chart=accuracy_chart(trajectory, width=860, height=340) if trajectory else "",
        narrow_chart=accuracy_chart(trajectory, width=350, height=280) if trajectory else "",
    )
    path = source.parent / REPORT if source.name == RESULTS else source.with_suffix(".html")
    write_text(path, page)
    return path
