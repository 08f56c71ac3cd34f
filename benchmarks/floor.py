"""The least that an inference can take: what its link needs for its rounds and bytes, and the network in plaintext.

floor = rounds * RTT + bytes / bandwidth + seconds of the same network under `plaintext`, in the same results. Computed
from rows and never stored. Beside it, for a link, the backend's own seconds on loopback in the place of plaintext: what
lies between that and the measurement is lost in how the protocol uses the link.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.links import least_link_seconds, link_in
from benchmarks.schema import LOOPBACK, Phase, Results, Subject
from benchmarks.summary import layer_costs, measured_subjects, phase_cost

PLAINTEXT = "plaintext"


@dataclass(frozen=True, kw_only=True)
class _Floored:
    """Measured seconds beside a floor.

    link_s: of rounds and bytes. plaintext_s: of the same work in the clear; None where it was not measured.
    """

    measured_s: float
    link_s: float
    plaintext_s: float | None

    @property
    def floor_s(self) -> float:
        """Seconds below which no protocol of these rounds and bytes can be; of the link alone without plaintext."""
        return self.link_s + (self.plaintext_s or 0.0)

    @property
    def ratio(self) -> float | None:
        """Measured over floor; None where the floor is nothing, or no clock told this part from the rest."""
        return self.measured_s / self.floor_s if self.floor_s and self.measured_s else None


@dataclass(frozen=True, kw_only=True)
class Floor(_Floored):
    """One online measurement. loopback_s: the backend's own on loopback; None there, and where it was not measured."""

    backend: str
    subject: Subject
    network: str
    loopback_s: float | None

    @property
    def loopback_ratio(self) -> float | None:
        """Measured over the link's seconds and the backend's own loopback seconds."""
        return None if self.loopback_s is None else self.measured_s / (self.link_s + self.loopback_s)


@dataclass(frozen=True, kw_only=True)
class LayerFloor(_Floored):
    """One layer online."""

    layer: str
    op: str
    relu_count: int


def floors(results: Results) -> tuple[Floor, ...]:
    """A floor for each secure backend, network at a budget, and link that was measured, in the order of the rows."""
    found = []
    for backend in results.backends:
        for network in results.networks:
            link = link_in(results, network)
            if backend == PLAINTEXT or link is None:
                continue
            for subject in measured_subjects(results, backend, network=network):
                cost = phase_cost(results, backend, subject.name, "online", network=network)
                if cost is None:
                    continue
                found.append(
                    Floor(
                        backend=backend,
                        subject=subject,
                        network=network,
                        measured_s=cost.latency_s.median,
                        link_s=least_link_seconds(link, backend, "online", cost.rounds, cost.sent_bytes),
                        plaintext_s=_median(results, PLAINTEXT, subject.name),
                        loopback_s=None if network == LOOPBACK else _median(results, backend, subject.name),
                    )
                )
    return tuple(found)


def layer_floors(results: Results, backend: str, subject: str, *, network: str) -> tuple[LayerFloor, ...]:
    """The layers of one measurement in the order of execution; empty where the link is unknown.

    Plaintext seconds are those that `plaintext` reports of a layer of that name, where it reports any: a layer that
    onnxruntime computes within another's kernel has none, and the other has its time.
    """
    link = link_in(results, network)
    if link is None:
        return ()
    phase: Phase = "online"
    plain = {layer.layer: layer.seconds for layer in layer_costs(results, PLAINTEXT, subject, phase)}
    return tuple(
        LayerFloor(
            layer=layer.layer,
            op=layer.op,
            relu_count=layer.relu_count,
            measured_s=layer.seconds,
            link_s=least_link_seconds(link, backend, phase, layer.rounds, layer.sent_bytes),
            plaintext_s=plain.get(layer.layer),
        )
        for layer in layer_costs(results, backend, subject, phase, network=network)
    )


def floor_document(results: Results) -> list[dict[str, object]]:
    """The floors as plain values, for a summary in JSON; all but ``measured_seconds`` is computed."""
    return [
        {
            "backend": entry.backend,
            "subject": entry.subject.name,
            "network": entry.network,
            "measured_seconds": entry.measured_s,
            "floor_seconds": entry.floor_s,
            "link_seconds": entry.link_s,
            "plaintext_seconds": entry.plaintext_s,
            "measured_over_floor": entry.ratio,
            "measured_over_link_and_loopback": entry.loopback_ratio,
        }
        for entry in floors(results)
    ]


def _median(results: Results, backend: str, subject: str) -> float | None:
    """Online seconds on loopback."""
    cost = phase_cost(results, backend, subject, "online")
    return None if cost is None else cost.latency_s.median
