"""The verb ``report``: a page of one run, or of several against each other."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("places", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run-dir", type=click.Path(path_type=Path), help="directory of a run; the same as a PATH")
@click.option(
    "--figure", "figures", multiple=True, metavar="KEY", help="of one PATH: write this figure alone, PNG and CSV"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="of several PATHs: the page to write  [comparison.html beside the first]",
)
def report(places: tuple[Path, ...], run_dir: Path | None, figures: tuple[str, ...], output: Path | None) -> None:
    """Write a self-contained page about the results in PATH, and each of its figures as PNG and CSV.

    PATH is a directory with a results.json or a file of results. One PATH: report.html and figures/ beside
    results.json; beside NAME.json they are NAME.html and NAME-figures/. The page ends with the name (KEY) of each
    figure.

    Several PATHs are compared: one page with the figures that the first and another have (same backend, network, ReLU
    count, mask, link and phase), the ratio of each to the first's, and the environments side by side; it warns where
    those differ.
    """
    if places and run_dir is not None:
        raise click.UsageError("give either a PATH or --run-dir")
    chosen = places or ((run_dir,) if run_dir is not None else ())
    if not chosen:
        raise click.UsageError("give a PATH, or --run-dir")
    if len(chosen) > 1:
        if figures:
            raise click.UsageError("--figure goes with one PATH")
        from benchmarks.comparison_report import write_comparison

        document: dict[str, object] = {"comparison": str(write_comparison(chosen, output))}
    else:
        if output is not None:
            raise click.UsageError("--output goes with several PATHs; the report of one lies beside its results")
        from benchmarks.report import save_figures, write_report

        if figures:
            document = {"figures": [str(path) for path in save_figures(chosen[0], figures)]}
        else:
            document = {"report": str(write_report(chosen[0]))}
    click.echo(json.dumps(document))


def add_report_verb(group: click.Group) -> None:
    """Adds ``report`` to ``group``."""
    group.add_command(report)
