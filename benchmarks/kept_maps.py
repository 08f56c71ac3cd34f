"""Where the ReLUs sit: a small map of each layer, the darker the more of a location's channels kept theirs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks import units
from benchmarks.labels import headline_subject, subject_label
from benchmarks.plots import key_of
from benchmarks.schema import ReluLayer, Results, Subject

_BLUE = (31, 126, 208)
"""Seen on a light and on a dark page; the density is in the opacity."""


@dataclass(frozen=True, kw_only=True)
class MapPanel:
    """One layer. shares: of the channels at each location, those that kept their ReLU, row by row, from 0 to 1."""

    layer: str
    height: int
    width: int
    channels: int
    relu_count: int
    elements: int
    shares: tuple[float, ...]

    @property
    def alt(self) -> str:
        """The map in words."""
        kept = units.percent(self.relu_count / self.elements)
        return (
            f"{self.layer}: {units.count(self.relu_count)} of {units.count(self.elements)} kept ({kept}); of the"
            f" {self.channels} channels at one of {self.height} by {self.width} locations from"
            f" {units.percent(min(self.shares))} to {units.percent(max(self.shares))}"
        )

    def image(self, most: float) -> str:
        """A PNG of one pixel a location, as a data URI; ``most`` is the share that is drawn darkest."""
        shares = np.array(self.shares, dtype=np.float64).reshape(self.height, self.width)
        pixels = np.empty((self.height, self.width, 4), dtype=np.uint8)
        pixels[..., :3] = _BLUE
        pixels[..., 3] = np.rint(255 * shares / most)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True, kw_only=True)
class MapFigure:
    """The maps of one network on one scale. key: names its files. most: the largest share of any location."""

    key: str
    title: str
    subject: Subject
    panels: tuple[MapPanel, ...]

    @property
    def most(self) -> float:
        """The share that is drawn darkest."""
        return max(max(panel.shares) for panel in self.panels) or 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of :attr:`rows`."""
        return ("layer", "channels", "row", "column", "kept")

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """Every location, raw."""
        return tuple(
            (panel.layer, panel.channels, place // panel.width, place % panel.width, round(share * panel.channels))
            for panel in self.panels
            for place, share in enumerate(panel.shares)
        )


def map_figures(results: Results) -> tuple[MapFigure, ...]:
    """A figure a network that lost ReLUs, the one that the page is about first; none where the results have no maps."""
    first = headline_subject(results)
    cut = [subject for subject in results.subjects if subject.relu_count < subject.relu_total]
    cut.sort(key=lambda subject: subject.name != first.name)
    found = []
    for subject in cut:
        layers = [layer for layer in results.relu_layers if layer.subject == subject.name]
        panels = tuple(panel for layer in layers if (panel := _panel(layer)) is not None)
        if any(layer.kept_map is not None for layer in layers):
            title = f"Where the ReLUs sit: {subject_label(subject)}"
            found.append(MapFigure(key=key_of("maps", subject.name), title=title, subject=subject, panels=panels))
    return tuple(found)


def _panel(layer: ReluLayer) -> MapPanel | None:
    if layer.shape is None or len(layer.shape) != 3:
        return None
    channels, height, width = layer.shape
    counts = layer.kept_map
    if counts is None:  # all or none: the same at each location
        counts = (layer.relu_count // (height * width),) * (height * width)
    return MapPanel(
        layer=layer.layer,
        height=height,
        width=width,
        channels=channels,
        relu_count=layer.relu_count,
        elements=layer.elements,
        shares=tuple(count / channels for count in counts),
    )
