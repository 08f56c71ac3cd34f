"""One self-contained page that compares runs, and its figures as files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import Run, environment_facts, ratio_charts, same_figures, warnings
from benchmarks.cost_law import predictions
from benchmarks.errors import ReportError
from benchmarks.gallery import distinct, save_gallery
from benchmarks.page import render
from benchmarks.results_file import load_results
from benchmarks.tally import GOAL, backend_tallies
from pi_runtime.files import write_text

RESULTS, PAGE = "results.json", "comparison.html"


def write_comparison(places: Sequence[Path], output: Path | None = None, *, gallery: bool = True) -> Path:
    """Writes a page that sets the runs in ``places`` against the first of them.

    Args:
        places: at least two directories with a ``results.json``, or results files.
        output: the page; ``comparison.html`` beside the first results where it is None. Its figures, PNG and CSV, go
            to ``<its name>-figures`` beside it.
        gallery: write those too.

    Raises:
        ReportError: there are fewer than two places, or one of them twice.
        ResultsError: a place has no results, or they are damaged.
        ConfigError: the page cannot be written.
    """
    sources = [place if place.suffix == ".json" and not place.is_dir() else place / RESULTS for place in places]
    if len({source.resolve() for source in sources}) < max(len(sources), 2):
        raise ReportError(f"a comparison must have at least two results that differ, got {', '.join(map(str, places))}")
    names = _names(sources)
    runs = [Run(name=name, results=load_results(source)) for name, source in zip(names, sources, strict=True)]
    page = output or sources[0].with_name(PAGE)
    directory = f"{page.stem}-figures"
    same = same_figures(runs)
    charts = ratio_charts(runs, same)
    laws = [(run.name, backend_tallies(predictions(run.results))) for run in runs]
    command = ["pi-pipeline", "report", *map(str, places), *(["--output", str(output)] if output else [])]
    content = {
        "runs": runs,
        "same": same,
        "charts": charts,
        "laws": laws if any(tallies for _, tallies in laws) else [],
        "goal": GOAL,
        "facts": environment_facts(runs),
        "warnings": warnings(runs),
        "directory": directory,
        "command": shlex.join(command),
    }
    write_text(page, render("comparison.html", content))
    if gallery:
        save_gallery(distinct(charts), page.parent / directory)
    return page


def _names(sources: Sequence[Path]) -> list[str]:
    """The shortest names that tell the results apart: of the file or its directory, else the paths."""
    short = [source.resolve().parent.name if source.name == RESULTS else source.stem for source in sources]
    return short if len(set(short)) == len(short) else [str(source) for source in sources]
