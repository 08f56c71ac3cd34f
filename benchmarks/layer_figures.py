"""A bar a layer: seconds and bytes of one backend, network, link and phase, in the order of execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.bars import Segment, segments
from benchmarks.floor import PLAINTEXT, layer_floors
from benchmarks.labels import place, subject_label
from benchmarks.layer_views import KIND_NAMES, kind_of
from benchmarks.plots import key_of, text_of
from benchmarks.schema import Phase, Results, SentBytes, Subject
from benchmarks.summary import LayerPhaseCost, layer_costs, measured_subjects

ROLES = ("client", "server", "dealer")
PHASES: tuple[Phase, ...] = ("online", "offline")

CLOCKS: dict[tuple[str, str], str] = {
    ("preset", "offline"): "seconds of the dealer, while the client does its part of the linear layers",
    (
        "plaintext",
        "online",
    ): "seconds of onnxruntime's kernels in profiled runs; what went into a convolution's has no line",
}
"""Whose seconds they are, by backend and phase, where that is not the party's that computes the layer."""

SMALL = 0.002
"""Layers that send nothing and take less than this part of the time stand together in one line."""


@dataclass(frozen=True, kw_only=True)
class LayerLine:
    """One layer, or several small ones together.

    kind: index of its kind in ``KIND_NAMES``. floor_s: the least that it could take on its link, where that is known.
    """

    layer: str
    op: str
    kind: int
    relu_count: int
    seconds: float
    sent_bytes: SentBytes
    rounds: int
    floor_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One scale of bars beside the layers: seconds coloured by kind of layer, or bytes by the role that sent them."""

    title: str
    unit: Literal["s", "bytes"]
    most: float

    def segments(self, line: LayerLine) -> tuple[Segment, ...]:
        """The parts of a layer's bar."""
        if self.unit == "s":
            return segments([(f"kind{line.kind}", KIND_NAMES[line.kind], line.seconds)])
        return segments((role, role, float(getattr(line.sent_bytes, role))) for role in ROLES)

    def text(self, line: LayerLine) -> str:
        """The length of a layer's bar in words; empty where there is none."""
        value = line.seconds if self.unit == "s" else line.sent_bytes.total
        return text_of(value, self.unit) if value else ""


@dataclass(frozen=True, kw_only=True)
class LayerFigure:
    """The layers of one phase. key: names its files. note: on its clock. raw: every layer, for the CSV."""

    key: str
    title: str
    note: str
    subject: Subject
    network: str
    phase: Phase
    lines: tuple[LayerLine, ...]
    raw: tuple[LayerPhaseCost, ...]
    floors: Mapping[str, float]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The scales on which there is anything to see."""
        longest = max(line.seconds for line in self.lines)
        most = max(line.sent_bytes.total for line in self.lines)
        found = []
        if longest:
            longest = max(longest, *(line.floor_s or 0.0 for line in self.lines))
            found.append(Panel(title="seconds", unit="s", most=longest))
        if most:
            found.append(Panel(title="bytes, by sender", unit="bytes", most=most))
        return tuple(found)

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """(Colour, text) of each kind of layer and each sender that occurs."""
        kinds = sorted({line.kind for line in self.lines if line.seconds})
        found = [(f"kind{kind}", KIND_NAMES[kind]) for kind in kinds]
        found += [(role, f"sent by {role}") for role in ROLES if any(getattr(r.sent_bytes, role) for r in self.raw)]
        if self.floors:
            found.append(("ink", "upright: the floor, the link's seconds and plaintext's where it tells its layers"))
        return tuple(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """Headers of :attr:`rows`."""
        return ("layer", "op", "relu_count", "seconds", "floor_s", *(f"{r}_bytes" for r in ROLES), "messages", "rounds")

    @property
    def rows(self) -> tuple[tuple[object, ...], ...]:
        """Every layer, raw."""
        return tuple(
            (
                row.layer,
                row.op,
                row.relu_count,
                row.seconds,
                self.floors.get(row.layer),
                *(getattr(row.sent_bytes, role) for role in ROLES),
                row.messages,
                row.rounds,
            )
            for row in self.raw
        )


def layer_figures(results: Results, backend: str) -> tuple[LayerFigure, ...]:
    """A figure a link, subject and phase of one backend, the fewest ReLUs first."""
    found = []
    for network in results.networks:
        subjects = measured_subjects(results, backend, network=network)
        for subject in sorted(subjects, key=lambda subject: subject.relu_count):
            for phase in PHASES:
                raw = layer_costs(results, backend, subject.name, phase, network=network)
                known = _floors(results, backend, subject, network) if phase == "online" else {}
                lines = _lines(raw, known)
                if any(line.seconds or line.sent_bytes.total for line in lines):
                    found.append(
                        LayerFigure(
                            key=key_of("layers", backend, subject.name, network, phase),
                            title=f"{backend}: {phase}, {subject_label(subject)}{place(results, network)}",
                            note=CLOCKS.get((backend, phase), "") if any(line.seconds for line in lines) else "",
                            subject=subject,
                            network=network,
                            phase=phase,
                            lines=lines,
                            raw=raw,
                            floors=known,
                        )
                    )
    return tuple(found)


def _floors(results: Results, backend: str, subject: Subject, network: str) -> dict[str, float]:
    """Seconds below which no layer with these rounds and bytes can be, for the layers where that is anything."""
    if backend == PLAINTEXT:
        return {}
    entries = layer_floors(results, backend, subject.name, network=network)
    return {entry.layer: entry.floor_s for entry in entries if entry.floor_s > 0}


def _lines(raw: tuple[LayerPhaseCost, ...], floors: Mapping[str, float]) -> tuple[LayerLine, ...]:
    whole = sum(row.seconds for row in raw)
    small = [r for r in raw if not r.sent_bytes.total and not r.relu_count and r.seconds <= SMALL * whole]
    lines = [
        LayerLine(
            layer=row.layer,
            op=row.op,
            kind=kind_of(row.op),
            relu_count=row.relu_count,
            seconds=row.seconds,
            sent_bytes=row.sent_bytes,
            rounds=row.rounds,
            floor_s=floors.get(row.layer),
        )
        for row in raw
        if row not in small
    ]
    if small:
        lines.append(
            LayerLine(
                layer=f"{len(small)} small layers",
                op="together",
                kind=len(KIND_NAMES) - 1,
                relu_count=0,
                seconds=sum(row.seconds for row in small),
                sent_bytes=SentBytes(client=0, server=0, dealer=0),
                rounds=sum(row.rounds for row in small),
            )
        )
    return tuple(lines)
