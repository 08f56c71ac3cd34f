"""What ``estimate`` predicts of `preset`, and how far off that is.

A prediction is a rehearsal on loopback, with random weights of the public graph's shapes, and the numbers of a link
(:mod:`pi_runtime.preset.rehearse`): nothing is fitted to the results, and no row of them goes in. Where the rehearsal
took turns with the real thing, run by run, the drift of the machine is in both alike; one made at another time has that
in its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.schema import Phase, Rehearsed, Results, SentBytes
from benchmarks.summary import phase_cost
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.net.shaping import NetworkProfile, parse_profile
from pi_runtime.preset.estimate import Volume, estimate
from pi_runtime.preset.rehearse import Latency, offline_latency, online_latency

BACKEND = "preset"

_LATENCY: Mapping[Phase, Callable[..., Latency]] = {"online": online_latency, "offline": offline_latency}


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
    seconds: Mapping[Phase, Sequence[float]], *, graph: Graph, subject: str, sweep: int = 0
) -> tuple[Rehearsed, ...]:
    """An entry a phase: the seconds of rehearsed inferences of one image, and what the public graph declares."""
    exact = estimate(graph, 1)
    declared: tuple[tuple[Phase, Volume], ...] = (("offline", exact.offline), ("online", exact.online))
    return tuple(
        Rehearsed(
            subject=subject,
            phase=phase,
            sweep=sweep,
            seconds=tuple(seconds[phase]),
            sent_bytes=SentBytes(**volume.sent_bytes),
            rounds=volume.rounds,
        )
        for phase, volume in declared
    )


def foresight(results: Results) -> tuple[Check, ...]:
    """Every row of `preset` whose subject has a rehearsal in the results, beside what that predicts; in medians."""
    found = []
    for subject in results.subjects:
        for network in results.networks:
            profile = profile_of(network)
            for phase in _LATENCY:
                entries = [
                    entry for entry in results.rehearsed if (entry.subject, entry.phase) == (subject.name, phase)
                ]
                cost = phase_cost(results, BACKEND, subject.name, phase, network=network)
                if not entries or cost is None or profile is None:
                    continue
                declared = entries[0]
                compute_s = median(second for entry in entries for second in entry.seconds)
                modelled = _LATENCY[phase](
                    compute_s, rounds=declared.rounds, sent_bytes=declared.sent_bytes.model_dump(), profile=profile
                )
                found.append(
                    Check(
                        subject=subject.name,
                        relu_count=subject.relu_count,
                        network=network,
                        phase=phase,
                        predicted_s=modelled.total_s,
                        measured_s=cost.latency_s.median,
                        predicted_bytes=declared.sent_bytes.total,
                        measured_bytes=cost.sent_bytes.total,
                    )
                )
    return tuple(found)


def profile_of(network: str) -> NetworkProfile | None:
    """The profile of a name or of numbers; None where neither says what it is."""
    try:
        return parse_profile(network)
    except ConfigError:
        return None
