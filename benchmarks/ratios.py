"""One backend against another on the same subject, whose runs were taken in turn."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.schema import Results
from benchmarks.summary import phase_cost

REFERENCES = ("crypten", "plaintext")
"""What the others are compared with, where it was measured."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median latency of ``backend`` over that of ``reference`` on one subject; below 1 the backend is faster.

    total: offline and online together.
    """

    backend: str
    reference: str
    subject: str
    network: str
    online: float
    total: float


def ratios(results: Results) -> tuple[Ratio, ...]:
    """Every backend against each reference, on every subject and network profile that both were timed on."""
    found = []
    for network in results.networks:
        for subject in results.subjects:
            latency = {name: _latency(results, name, subject.name, network) for name in results.backends}
            for name in results.backends:
                for reference in REFERENCES:
                    own, other = latency[name], latency.get(reference)
                    if name in ("plaintext", reference) or own is None or other is None or 0 in other:
                        continue
                    found.append(
                        Ratio(
                            backend=name,
                            reference=reference,
                            subject=subject.name,
                            network=network,
                            online=own[0] / other[0],
                            total=own[1] / other[1],
                        )
                    )
    return tuple(found)


def _latency(results: Results, backend: str, subject: str, network: str) -> tuple[float, float] | None:
    """Median seconds online, and online and offline together."""
    online = phase_cost(results, backend, subject, "online", network=network)
    offline = phase_cost(results, backend, subject, "offline", network=network)
    if online is None:
        return None
    return online.latency_s.median, online.latency_s.median + (offline.latency_s.median if offline else 0.0)
