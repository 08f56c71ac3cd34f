"""Whether a secure network is the network: its answers beside plaintext's, and the latency measured with them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.schema import LOOPBACK, Results, SecureAccuracy, SimulatedAccuracy, Subject
from benchmarks.summary import known_cost


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One comparison with onnxruntime on the same images.

    through: ``processes``, or the ``simulator``, whose figures were computed. online_s: measured on loopback; None
    where it was not.
    """

    backend: str
    subject: Subject
    through: str
    images: int
    agreement_with_plaintext: float
    max_abs_logit_error: float
    accuracy: float | None
    online_s: float | None


def answers(results: Results) -> tuple[Answers, ...]:
    """Of each network that was compared: through processes, then through the simulator."""
    entries: tuple[SecureAccuracy, ...] = (*results.secure, *results.simulated)
    order = {subject.name: number for number, subject in enumerate(results.subjects)}
    backends = {name: number for number, name in enumerate(results.backends)}
    ordered = sorted(entries, key=lambda entry: (backends.get(entry.backend, len(backends)), order[entry.subject]))
    return tuple(_answers(results, entry) for entry in ordered)


def _answers(results: Results, entry: SecureAccuracy) -> Answers:
    cost = known_cost(results, entry.backend, entry.subject, "online", network=LOOPBACK)
    return Answers(
        backend=entry.backend,
        subject=results.subject(entry.subject),
        through="simulator" if isinstance(entry, SimulatedAccuracy) else "processes",
        images=entry.images,
        agreement_with_plaintext=entry.agreement_with_plaintext,
        max_abs_logit_error=entry.max_abs_logit_error,
        accuracy=entry.accuracy,
        online_s=None if cost is None else cost.latency_s.median,
    )
