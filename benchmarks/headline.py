"""The few figures that sum up a measurement, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.cost_law import cost_laws, predictions
from benchmarks.fit import cost_lines
from benchmarks.floor import floor_document
from benchmarks.ratios import ratios
from benchmarks.schema import Phase, Results
from benchmarks.summary import layer_costs, main_network, measured_subjects, phase_cost

AGREEMENT_FLOOR = 0.99
"""Below this fraction of equal predictions a secure result must not pass as the network's."""


def headline(results: Results) -> dict[str, object]:
    """Headline figures as one JSON-able object; latencies in seconds, bytes for one image."""
    return {
        "subjects": [subject.model_dump(mode="json") for subject in results.subjects],
        "backends": {
            name: {
                subject.name: _backend_figures(results, name, subject.name)
                for subject in measured_subjects(results, name, network=main_network(results))
            }
            for name in results.backends
        },
        "lines": [
            {
                "backend": entry.backend,
                "model": entry.model,
                "network": entry.network,
                "phase": entry.phase,
                "unit": entry.unit,
                "a_relu": entry.line.slope,
                "at_no_relu": entry.line.intercept,
                "r_squared": entry.line.r_squared,
                "points": entry.line.points,
            }
            for entry in cost_lines(results)
        ],
        "laws": [
            {
                "backend": entry.backend,
                "model": entry.model,
                "phase": entry.phase,
                "fixed_seconds": entry.law.fixed_s,
                "seconds_a_relu": entry.law.relu_s,
                "fitted_on": list(entry.law.fitted_on),
                "largest_residual": max(residual.size for residual in entry.residuals),
            }
            for entry in cost_laws(results)
        ],
        "predictions": [{**asdict(entry), "error": entry.error} for entry in predictions(results)],
        "floors": floor_document(results),
        "problems": list(problems(results)),
    }


def problems(results: Results) -> tuple[str, ...]:
    """One sentence for each secure result that disagrees with plaintext too often."""
    return tuple(
        f"{entry.backend} agrees with plaintext on only {entry.agreement_with_plaintext:.1%} of {entry.images} images"
        f" ({entry.subject} network, largest logit error {entry.max_abs_logit_error:.3g}); its costs are not those of a"
        " correct inference"
        for entry in results.secure
        if entry.agreement_with_plaintext < AGREEMENT_FLOOR
    )


def _backend_figures(results: Results, backend: str, subject: str) -> dict[str, object]:
    figures: dict[str, object] = {}
    network = main_network(results)
    phases: tuple[Phase, ...] = ("offline", "online")
    for phase in phases:
        cost = phase_cost(results, backend, subject, phase, network=network)
        if cost is not None:
            figures |= {
                f"{phase}_latency_s": cost.latency_s.median,
                f"{phase}_min_s": cost.latency_s.min,
                f"{phase}_max_s": cost.latency_s.max,
                f"{phase}_bytes": cost.sent_bytes.total,
                f"{phase}_sent_bytes": cost.sent_bytes.model_dump(),
                f"{phase}_rounds": cost.rounds,
            }
    relus = [layer for layer in layer_costs(results, backend, subject, "online", network=network) if layer.op == "relu"]
    if any(layer.sent_bytes.total for layer in relus):
        figures["online_relu_bytes"] = sum(layer.sent_bytes.total for layer in relus)
    for ratio in ratios(results):
        if (ratio.backend, ratio.subject, ratio.network) == (backend, subject, network):
            figures |= {
                f"online_latency_over_{ratio.reference}": ratio.online,
                f"total_latency_over_{ratio.reference}": ratio.total,
            }
    entry = results.accuracy_of(backend, subject)
    if entry is not None:
        figures |= {
            "agreement_with_plaintext": entry.agreement_with_plaintext,
            "max_abs_logit_error": entry.max_abs_logit_error,
        }
    return figures
