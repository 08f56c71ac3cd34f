"""The few figures that sum up a run, and what is wrong with it."""

from __future__ import annotations

from benchmarks.schema import GraphName, Phase, Results

AGREEMENT_FLOOR = 0.99
"""Below this fraction of equal predictions a secure result must not pass as the network's."""


def headline(results: Results) -> dict[str, object]:
    """Headline figures as one JSON-able object; latencies in seconds, bytes of all roles together, for one image."""
    model = results.model
    return {
        "model": model.name,
        "dataset": model.dataset,
        "relu_total": model.relu_total,
        "relu_budget": model.relu_budget,
        "relu_count": model.relu_count,
        "baseline_test": results.accuracy.baseline_test,
        "linearized_test": results.accuracy.linearized_test,
        "backends": {
            name: {graph: _backend_figures(results, name, graph) for graph in results.graphs}
            for name in results.backends
        },
        "problems": list(problems(results)),
    }


def problems(results: Results) -> tuple[str, ...]:
    """One sentence for each secure result that disagrees with plaintext too often."""
    return tuple(
        f"{entry.backend} agrees with plaintext on only {entry.agreement_with_plaintext:.1%} of {entry.images} images"
        f" ({entry.graph} network, largest logit error {entry.max_abs_logit_error:.3g}); its costs are not those of a"
        " correct inference"
        for entry in results.accuracy.secure
        if entry.agreement_with_plaintext < AGREEMENT_FLOOR
    )


def _backend_figures(results: Results, backend: str, graph: GraphName) -> dict[str, object]:
    figures: dict[str, object] = {}
    phases: tuple[Phase, ...] = ("offline", "online")
    for phase in phases:
        row = results.row(backend, graph, phase)
        if row is not None:
            figures |= {
                f"{phase}_latency_s": row.latency_s.median,
                f"{phase}_bytes": row.sent_bytes.total,
                f"{phase}_rounds": row.rounds,
            }
    relus = [layer for layer in results.layer_rows(backend, graph, "online") if layer.op == "relu"]
    if relus:
        figures["online_relu_bytes"] = sum(layer.sent_bytes.total for layer in relus)
    entry = results.secure(backend, graph)
    if entry is not None:
        figures |= {
            "agreement_with_plaintext": entry.agreement_with_plaintext,
            "max_abs_logit_error": entry.max_abs_logit_error,
        }
    return figures
