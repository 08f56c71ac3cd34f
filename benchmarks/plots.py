"""What a figure shows, before it is drawn: the page, the image and the CSV of a figure are made from one of these."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks import units

Unit = Literal["s", "bytes", "ReLUs", "percent", "times"]
Dot = Literal["solid", "hollow", "none"]
Stroke = Literal["solid", "dashed", "none"]


def text_of(value: float, unit: Unit) -> str:
    """A value of an axis as a reader wants it."""
    if unit == "ReLUs":
        return units.count(round(value))
    if unit == "percent":
        return f"{units.significant(value)}{units.THIN}%"
    if unit == "times":
        return f"{units.significant(value)}×"
    return units.amount(value, unit)


def tick_of(value: float, unit: Unit) -> str:
    """The same beside a tick, which is a round number."""
    return units.plain(text_of(value, unit))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is measured along an axis, and on which scale."""

    label: str
    unit: Unit
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point of a series; low and high bound what was seen of y, label stands beside the point."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together.

    kind: what they are (``measured``, ``modelled``, ``fit``, ...), for the CSV. colour: a name of the palette.
    radius: of the dots, CSS pixels. in_legend: whether the legend names it.
    """

    name: str
    kind: str
    marks: tuple[Mark, ...]
    colour: str
    dot: Dot = "solid"
    stroke: Stroke = "none"
    radius: float = 4.0
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Series over two axes. key: names its files. alt: says what it shows to those who do not see it."""

    key: str
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    def drawable(self, mark: Mark) -> bool:
        """Whether the mark has a place: a logarithmic axis has none for zero."""
        return (mark.x > 0 or not self.x.log) and (mark.y > 0 or not self.y.log)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of :attr:`rows`."""
        return ("series", "kind", self.x.label, self.y.label, "least", "most", "label")

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """Every mark, raw: seconds, bytes, counts, percent."""
        return tuple((s.name, s.kind, m.x, m.y, m.low, m.high, m.label) for s in self.series for m in s.marks)


def key_of(*parts: str) -> str:
    """A file name without ending: lower-case letters, digits and dashes of ``parts``."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-") or "figure"


def described(series: Iterable[Series], x: Axis, y: Axis) -> str:
    """Every point of the series in words, but those of fits."""
    return ". ".join(
        f"{one.name}: " + "; ".join(f"{text_of(m.x, x.unit)} {text_of(m.y, y.unit)}" for m in one.marks)
        for one in series
        if one.kind != "fit"
    )
