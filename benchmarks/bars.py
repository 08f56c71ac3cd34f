"""Bars of the report: figures of phases and layers as parts of one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks import units
from benchmarks.summary import LayerPhaseCost, PhaseCost


def latency(cost: PhaseCost) -> float:
    """The median, in seconds."""
    return cost.latency_s.median


def sent(cost: PhaseCost | LayerPhaseCost) -> float:
    """The bytes of all roles together."""
    return float(cost.sent_bytes.total)


def _layer_seconds(cost: LayerPhaseCost) -> float:
    return cost.seconds


def byte_text(value: float) -> str:
    """Bytes, whole, with their prefix."""
    return units.bytes_(round(value))


Text = Callable[[float], str]
MEASURES: tuple[tuple[str, Callable[[PhaseCost], float], Callable[[LayerPhaseCost], float], Text], ...] = (
    ("latency", latency, _layer_seconds, units.seconds),
    ("traffic", sent, sent, byte_text),
)
"""What is compared: its name, the figure of a phase, the figure of a layer, and the figure as text."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar. ``width``: percent of the track. ``kind``: the CSS class that colours it."""

    kind: str
    width: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart: its label, its parts, its value as text, and a note behind it."""

    label: str
    segments: tuple[Segment, ...]
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars over one scale. ``legend``: (CSS class, text) for each kind of part."""

    title: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()
    change: str | None = None


def segments(parts: Iterable[tuple[str, str, float]], most: float, text: Text) -> tuple[Segment, ...]:
    """A part for each (CSS class, label, value) that is something, on a scale that ends at ``most``."""
    return tuple(
        Segment(kind=css, width=100 * value / most, label=f"{label}: {text(value)}")
        for css, label, value in parts
        if value
    )
