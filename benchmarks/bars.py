"""Bars of the report: figures of phases and layers as parts of one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks import units
from benchmarks.plots import Unit, text_of
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


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is compared: its name and unit, the figure of a phase, the figure of a layer, and the figure as text."""

    name: str
    unit: Unit
    of_phase: Callable[[PhaseCost], float]
    of_layer: Callable[[LayerPhaseCost], float]
    text: Text


LATENCY = Measure(name="latency", unit="s", of_phase=latency, of_layer=_layer_seconds, text=units.seconds)
TRAFFIC = Measure(name="traffic", unit="bytes", of_phase=sent, of_layer=sent, text=byte_text)
MEASURES = (LATENCY, TRAFFIC)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a bar. ``kind``: the colour of the palette, which is its CSS class too."""

    kind: str
    label: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart: its label, its parts, its value as text, and a note behind it.

    modelled: nobody measured it, and it is drawn so.
    """

    label: str
    segments: tuple[Segment, ...]
    value: str
    note: str = ""
    modelled: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars over one scale. key: names its files. legend: (colour, text) for each kind of part."""

    key: str
    title: str
    unit: Unit
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...] = ()
    change: str | None = None

    @property
    def most(self) -> float:
        """Where the scale ends: with the longest bar, and with 1 at least where the bars are ratios."""
        longest = max((sum(part.value for part in bar.segments) for bar in self.bars), default=0.0)
        return max(longest, 1.0) if self.unit == "times" else longest or 1.0

    def text(self, segment: Segment) -> str:
        """A part in words."""
        return f"{segment.label}: {text_of(segment.value, self.unit)}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of :attr:`rows`."""
        return ("bar", "part", "kind", self.unit)

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """Every part, raw."""
        return tuple(
            (bar.label, part.label, "modelled" if bar.modelled else "measured", part.value)
            for bar in self.bars
            for part in bar.segments
        )


def segments(parts: Iterable[tuple[str, str, float]]) -> tuple[Segment, ...]:
    """A part for each (colour, label, value) that is something."""
    return tuple(Segment(kind=colour, label=label, value=value) for colour, label, value in parts if value)
