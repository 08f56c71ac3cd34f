"""Reads a results document; what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from benchmarks.errors import ResultsError
from benchmarks.schema import SCHEMA, Results


def load_results(path: Path) -> Results:
    """Reads and checks a ``results.json``.

    Raises:
        ResultsError: it is missing, not JSON, of another schema, or breaks a rule of the schema (named).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ResultsError(f"there is no {path}; make one with `pi-pipeline bench`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"cannot read {path} ({error}); run `pi-pipeline bench` again") from error
    return parse_results(text, origin=str(path))


def parse_results(text: str, *, origin: str) -> Results:
    """Checks a results document; ``origin`` names it in errors.

    Raises:
        ResultsError: as :func:`load_results`.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultsError(f"{origin} is not whole JSON ({error}); run `pi-pipeline bench` again") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ResultsError(
            f"{origin} must be a results document of schema {SCHEMA}, got schema {schema!r};"
            " run `pi-pipeline bench` again"
        )
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the document"
        raise ResultsError(
            f"{origin} is damaged: {place}: {first['msg']}; correct it or run `pi-pipeline bench` again"
        ) from error
