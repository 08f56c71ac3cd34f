"""Values of a flag that are separated by commas; spaces around them and empty ones do not count."""

from __future__ import annotations

import click


def split_names(text: str) -> list[str]:
    """The names in ``text``, in their order; there may be none."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(flag: str, text: str, *, kind: str = "whole numbers") -> tuple[int, ...]:
    """The numbers in ``text``, at least 0, in their order. kind: what they are, for the message.

    Raises:
        click.UsageError: one is no such number, or there is none.
    """
    parts = split_names(text)
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise click.UsageError(f"{flag} must be {kind} separated by commas, got {text!r}")
    return tuple(int(part) for part in parts)
