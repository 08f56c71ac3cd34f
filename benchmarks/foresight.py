"""What ``estimate`` predicts of `preset`, and how far off that is.

A prediction is a rehearsal on loopback, with random weights of the public graph's shapes, and the numbers of a link
(:mod:`pi_runtime.preset.latency`): nothing is fitted to the results, and no row of them goes in. One exception: results
of earlier versions do not say how a rehearsal was divided among the layers; there the rows of `preset` on loopback do.
Where the rehearsal took turns with the real thing, run by run, the drift of the machine is in both alike; one made at
another time has that in its error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.schema import LOOPBACK, LayerRow, Phase, Rehearsed, RehearsedLayer, Results, SentBytes
from benchmarks.summary import phase_cost
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.net.shaping import NetworkProfile, parse_profile
from pi_runtime.preset.estimate import Volume, estimate
from pi_runtime.preset.latency import DealtLayer, Latency, offline_latency, online_latency

BACKEND = "preset"

_PHASES: tuple[Phase, ...] = ("online", "offline")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One phase of one network on one link: modelled and measured seconds and bytes of an inference of one image."""

    subject: str
    relu_count: int
    network: str
    phase: Phase
    predicted_s: float
    measured_s: float
    predicted_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """Predicted against measured seconds, as a fraction; above 0 where too much was predicted."""
        return self.predicted_s / self.measured_s - 1


def rehearsed_rows(
    seconds: Mapping[Phase, Sequence[float]],
    dealt: Sequence[RehearsedLayer],
    *,
    graph: Graph,
    subject: str,
    sweep: int = 0,
) -> tuple[Rehearsed, ...]:
    """An entry a phase: the seconds of rehearsed inferences of one image, and what the public graph declares.

    dealt: the layers of the offline phase.
    """
    exact = estimate(graph, 1)
    declared: tuple[tuple[Phase, Volume, tuple[RehearsedLayer, ...]], ...] = (
        ("offline", exact.offline, tuple(dealt)),
        ("online", exact.online, ()),
    )
    return tuple(
        Rehearsed(
            subject=subject,
            phase=phase,
            sweep=sweep,
            seconds=tuple(seconds[phase]),
            sent_bytes=SentBytes(**volume.sent_bytes),
            rounds=volume.rounds,
            layers=layers,
        )
        for phase, volume, layers in declared
    )


def foresight(results: Results) -> tuple[Check, ...]:
    """Every row of `preset` whose subject has a rehearsal in the results, beside what that predicts; in medians."""
    found = []
    for subject in results.subjects:
        for network in results.networks:
            profile = profile_of(network)
            for phase in _PHASES:
                entries = [
                    entry for entry in results.rehearsed if (entry.subject, entry.phase) == (subject.name, phase)
                ]
                cost = phase_cost(results, BACKEND, subject.name, phase, network=network)
                if not entries or cost is None or profile is None:
                    continue
                modelled = _latency(results, entries, profile)
                found.append(
                    Check(
                        subject=subject.name,
                        relu_count=subject.relu_count,
                        network=network,
                        phase=phase,
                        predicted_s=modelled.total_s,
                        measured_s=cost.latency_s.median,
                        predicted_bytes=entries[0].sent_bytes.total,
                        measured_bytes=cost.sent_bytes.total,
                    )
                )
    return tuple(found)


def _latency(results: Results, entries: Sequence[Rehearsed], profile: NetworkProfile) -> Latency:
    """The modelled latency of one phase of a subject, from its rehearsals in every sweep."""
    declared = entries[0]
    compute_s = median(second for entry in entries for second in entry.seconds)
    sent_bytes = declared.sent_bytes.model_dump()
    if declared.phase == "online":
        return online_latency(compute_s, rounds=declared.rounds, sent_bytes=sent_bytes, profile=profile)
    layers = _dealt([layer for entry in entries for layer in entry.layers] or _dealt_rows(results, declared.subject))
    return offline_latency(compute_s, layers=layers, rounds=declared.rounds, sent_bytes=sent_bytes, profile=profile)


def _dealt_rows(results: Results, subject: str) -> list[LayerRow]:
    place = (BACKEND, subject, LOOPBACK, "offline")
    return [row for row in results.layers if (row.backend, row.subject, row.network, row.phase) == place]


def _dealt(parts: Iterable[RehearsedLayer | LayerRow]) -> tuple[DealtLayer, ...]:
    """The layers in their order, each in medians of all its sweeps."""
    by_layer: dict[str, list[RehearsedLayer | LayerRow]] = {}
    for part in parts:
        by_layer.setdefault(part.layer, []).append(part)
    return tuple(
        DealtLayer(
            name=same[0].layer,
            seconds=median(second for part in same for second in part.seconds),
            sent_bytes=same[0].sent_bytes.model_dump(),
        )
        for same in by_layer.values()
    )


def profile_of(network: str) -> NetworkProfile | None:
    """The profile of a name or of numbers; None where neither says what it is."""
    try:
        return parse_profile(network)
    except ConfigError:
        return None
