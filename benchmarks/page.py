"""HTML pages from templates: one style and one set of macros for all, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import labels, units
from benchmarks.palette import DARK, LIGHT, PRINT
from benchmarks.plots import text_of
from benchmarks.svg import draw


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page of ``template`` with ``content``; every text is escaped, and a name that is missing is a bug."""
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
        "signed": units.signed_percent,
        "significant": units.significant,
        "amount": units.amount,
        "label": labels.subject_label,
    }
    environment.globals |= {
        "draw": draw,
        "text_of": text_of,
        "place": labels.place,
        "palettes": {"light": LIGHT, "dark": DARK, "print": PRINT},
    }
    return environment.get_template(template).render(content)
