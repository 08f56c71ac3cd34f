"""The report's tables of the cost law, the floor and published costs as raw figures, for CSV files beside it.

Seconds, bytes and counts as they were measured or computed, nothing rounded; what is computed says so in its header.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.foresight import BACKEND as FORESEEN
from benchmarks.law_view import LawView
from benchmarks.plots import key_of


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table of the page. key: names its file, which has no image."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


def law_tables(view: LawView) -> tuple[RawTable, ...]:
    """A table each, of those that have any row."""
    found = (
        _laws(view),
        _residuals(view),
        _held_back(view),
        _foreseen(view),
        _floors(view),
        _layers(view),
        _published(view),
    )
    return tuple(table for table in found if table.rows)


def _table(key: str, title: str, columns: str, rows: Iterable[tuple[object, ...]]) -> RawTable:
    return RawTable(key=key_of(key), title=title, columns=tuple(columns.split()), rows=tuple(rows))


def _laws(view: LawView) -> RawTable:
    return _table(
        "law-coefficients",
        "The cost law of each backend",
        "backend model phase fixed_s s_per_relu rounds_factor bytes_factor overlap work_factors fitted_on"
        " largest_residual",
        (
            (
                entry.backend,
                entry.model,
                entry.phase,
                entry.law.fixed_s,
                entry.law.relu_s,
                entry.law.factors.per_round,
                entry.law.factors.per_byte,
                entry.law.factors.overlap,
                " ".join(f"{network}={factor:.4g}" for network, factor in entry.law.factors.work.items()),
                " ".join(entry.law.fitted_on),
                max(residual.size for residual in entry.residuals),
            )
            for entry in view.laws
        ),
    )


def _residuals(view: LawView) -> RawTable:
    return _table(
        "law-residuals",
        "What the cost law leaves of each point",
        "backend model phase network relu_count relu_work rounds transferred_bytes measured_s law_s residual_s",
        (
            (
                entry.backend,
                entry.model,
                entry.phase,
                residual.point.network,
                residual.point.relu_count,
                residual.point.relu_work,
                residual.point.rounds,
                residual.point.transferred,
                residual.point.seconds,
                residual.fitted_s,
                residual.residual_s,
            )
            for entry in view.laws
            for residual in entry.residuals
        ),
    )


def _held_back(view: LawView) -> RawTable:
    return _table(
        "law-held-back",
        "Each ReLU count predicted from the others",
        "backend model phase network relu_count predicted_s measured_s error outside",
        (
            (
                entry.backend,
                entry.model,
                entry.phase,
                entry.network,
                entry.relu_count,
                entry.predicted_s,
                entry.measured_s,
                entry.error,
                entry.outside,
            )
            for entry in view.predictions
        ),
    )


def _foreseen(view: LawView) -> RawTable:
    return _table(
        "rehearsed",
        "What a rehearsal predicts, and what was measured in turn with it",
        "backend subject phase network relu_count predicted_s measured_s error predicted_bytes measured_bytes",
        (
            (
                FORESEEN,
                entry.subject,
                entry.phase,
                entry.network,
                entry.relu_count,
                entry.predicted_s,
                entry.measured_s,
                entry.error,
                entry.predicted_bytes,
                entry.measured_bytes,
            )
            for entry in view.foreseen
        ),
    )


def _floors(view: LawView) -> RawTable:
    return _table(
        "floor",
        "Measured latency and its floor",
        "backend subject network relu_count measured_s link_s_computed plaintext_s floor_s_computed"
        " measured_over_floor loopback_s measured_over_link_and_loopback",
        (
            (
                entry.backend,
                entry.subject.name,
                entry.network,
                entry.subject.relu_count,
                entry.measured_s,
                entry.link_s,
                entry.plaintext_s,
                entry.floor_s,
                entry.ratio,
                entry.loopback_s,
                entry.loopback_ratio,
            )
            for entry in view.floors
        ),
    )


def _layers(view: LawView) -> RawTable:
    return _table(
        "floor-layers",
        "Measured latency of each layer and its floor",
        "backend subject network layer op relu_count measured_s link_s_computed plaintext_s floor_s_computed"
        " measured_over_floor",
        (
            (
                entry.backend,
                entry.subject.name,
                entry.network,
                row.layer,
                row.op,
                row.relu_count,
                row.measured_s,
                row.link_s,
                row.plaintext_s,
                row.floor_s,
                row.ratio,
            )
            for entry in view.layers
            for row in entry.rows
        ),
    )


def _published(view: LawView) -> RawTable:
    return _table(
        "published",
        "Published costs of garbled circuits: modelled, not measured here",
        "backend kind subject network relu_count online_s online_bytes offline_s offline_bytes",
        (
            (
                entry.backend,
                entry.kind,
                entry.subject.name,
                entry.network,
                entry.subject.relu_count,
                entry.online_s,
                entry.online_bytes,
                entry.offline_s,
                entry.offline_bytes,
            )
            for entry in view.published
        ),
    )
