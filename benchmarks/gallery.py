"""The figures of a report as files beside it: a PNG and a CSV of each, and of its tables a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from benchmarks.bars import Chart
from benchmarks.errors import ReportError
from benchmarks.kept_maps import MapFigure
from benchmarks.layer_figures import LayerFigure
from benchmarks.plots import Plot
from benchmarks.png import save_png
from benchmarks.raw_tables import RawTable
from pi_runtime.files import write_text

Figure = Plot | Chart | LayerFigure | MapFigure | RawTable


def distinct(figures: Iterable[Figure]) -> tuple[Figure, ...]:
    """The figures, each with a key of its own: a number behind those that would share one."""
    seen: set[str] = set()
    found = []
    for figure in figures:
        keys = (figure.key if number == 1 else f"{figure.key}-{number}" for number in count(1))
        key = next(key for key in keys if key not in seen)
        seen.add(key)
        found.append(replace(figure, key=key))
    return tuple(found)


def save_gallery(figures: Sequence[Figure], directory: Path, only: Sequence[str] = ()) -> tuple[Path, ...]:
    """Writes ``KEY.png`` and ``KEY.csv`` of each figure, of all or of the keys in ``only``; returns the paths.

    A table has no image.

    The CSV holds raw figures: seconds, bytes, counts. Files that are there already are written over; others stay.

    Raises:
        ReportError: ``only`` names no figure of these.
        ConfigError: the directory cannot be written.
    """
    known = {figure.key: figure for figure in figures}
    for key in only:
        if key not in known:
            raise ReportError(f"--figure must be one of {', '.join(known)}; got {key!r}")
    written = []
    for figure in [known[key] for key in only] or figures:
        image, table = (directory / f"{figure.key}.{ending}" for ending in ("png", "csv"))
        if not isinstance(figure, RawTable):
            save_png(figure, image)
            written.append(image)
        write_text(table, csv_text(figure))
        written.append(table)
    return tuple(written)


def csv_text(figure: Figure) -> str:
    """The figure's raw numbers with a line of headers; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(figure.columns)
    writer.writerows(["" if value is None else _harmless(value) for value in row] for row in figure.rows)
    return out.getvalue()


def _harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, quoted as spreadsheets do; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
