"""What a reader makes of raw rows: median and spread over all runs of all sweeps, counts of a run in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, median_low

from benchmarks.schema import LOOPBACK, Kind, LayerRow, Phase, Results, SentBytes, Subject


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Wall time over ``runs`` repetitions, in seconds."""

    median: float
    min: float
    max: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """The cost of one phase of one inference; bytes, messages and rounds are figures that were really counted."""

    backend: str
    subject: Subject
    network: str
    kind: Kind
    phase: Phase
    images: int
    latency_s: Spread
    sent_bytes: SentBytes
    messages: int
    rounds: int
    byte_source: str


@dataclass(frozen=True, kw_only=True)
class LayerPhaseCost:
    """The cost of one node in one phase; ``seconds`` is the median."""

    layer: str
    op: str
    relu_count: int
    seconds: float
    sent_bytes: SentBytes
    messages: int
    rounds: int


def phase_cost(
    results: Results,
    backend: str,
    subject: str,
    phase: Phase,
    *,
    network: str = LOOPBACK,
    kind: Kind = "measured",
    images: int = 1,
) -> PhaseCost | None:
    """The rows of one phase over all sweeps as one cost; None where there is none."""
    wanted = (backend, subject, phase, network, kind, images)
    rows = [r for r in results.rows if (r.backend, r.subject, r.phase, r.network, r.kind, r.images) == wanted]
    if not rows:
        return None
    return PhaseCost(
        backend=backend,
        subject=results.subject(subject),
        network=network,
        kind=kind,
        phase=phase,
        images=images,
        latency_s=spread([second for row in rows for second in row.seconds]),
        sent_bytes=middle_bytes([row.sent_bytes for row in rows]),
        messages=median_low(row.messages for row in rows),
        rounds=median_low(row.rounds for row in rows),
        byte_source=rows[0].byte_source,
    )


def layer_costs(
    results: Results, backend: str, subject: str, phase: Phase, *, network: str = LOOPBACK
) -> tuple[LayerPhaseCost, ...]:
    """The layers of one phase in the order of execution, over all sweeps."""
    wanted = (backend, subject, phase, network)
    found: dict[str, list[LayerRow]] = {}
    for row in results.layers:
        if (row.backend, row.subject, row.phase, row.network) == wanted:
            found.setdefault(row.layer, []).append(row)
    return tuple(
        LayerPhaseCost(
            layer=name,
            op=rows[0].op,
            relu_count=rows[0].relu_count,
            seconds=median(second for row in rows for second in row.seconds),
            sent_bytes=middle_bytes([row.sent_bytes for row in rows]),
            messages=median_low(row.messages for row in rows),
            rounds=median_low(row.rounds for row in rows),
        )
        for name, rows in found.items()
    )


def spread(seconds: Sequence[float]) -> Spread:
    """Median, minimum and maximum of at least one repetition."""
    return Spread(median=median(seconds), min=min(seconds), max=max(seconds), runs=len(seconds))


def middle_bytes(sent: Sequence[SentBytes]) -> SentBytes:
    """By role the lower median: a count that was really seen."""
    return SentBytes(
        client=median_low(entry.client for entry in sent),
        server=median_low(entry.server for entry in sent),
        dealer=median_low(entry.dealer for entry in sent),
    )


def measured_subjects(
    results: Results, backend: str, *, network: str = LOOPBACK, kind: Kind = "measured"
) -> tuple[Subject, ...]:
    """The subjects that ``backend`` was timed on, in the document's order; or those that it was modelled for."""
    timed = {row.subject for row in results.rows if (row.backend, row.network, row.kind) == (backend, network, kind)}
    return tuple(subject for subject in results.subjects if subject.name in timed)


def main_network(results: Results) -> str:
    """The profile that the page is about where one must do: loopback where it was measured, else the first."""
    networks = results.networks
    return LOOPBACK if LOOPBACK in networks or not networks else networks[0]


def known_cost(results: Results, backend: str, subject: str, phase: Phase, *, network: str) -> PhaseCost | None:
    """The measured cost of a phase, else the modelled one; its ``kind`` says which."""
    kinds: tuple[Kind, ...] = ("measured", "modelled")
    costs = (phase_cost(results, backend, subject, phase, network=network, kind=kind) for kind in kinds)
    return next((cost for cost in costs if cost is not None), None)


def known_subjects(results: Results, backend: str, *, network: str) -> tuple[Subject, ...]:
    """The subjects with a measured or a modelled cost of ``backend``, in the document's order."""
    timed = {row.subject for row in results.rows if (row.backend, row.network) == (backend, network)}
    return tuple(subject for subject in results.subjects if subject.name in timed)
