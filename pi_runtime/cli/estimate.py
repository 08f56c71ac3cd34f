"""The verb ``estimate``: what private inference with a model costs, without the model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pi_runtime.cli.lists import whole_numbers

if TYPE_CHECKING:
    from pi_runtime.graph import Graph

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--network", default="wan", show_default=True, help="loopback, lan, wan, mobile or bandwidth_mbps=50,rtt_ms=20"
)
@click.option("--batch", default=1, show_default=True, type=_COUNT, help="images of an inference")
@click.option(
    "--party-threads", "--threads", default=1, show_default=True, type=_COUNT, help="CPU threads of the linear layers"
)
@click.option("--no-timing", is_flag=True, help="bytes alone; measure nothing")
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    help="results.json of `bench`: predict each MODEL's rows in it, and show how far off that is",
)
@click.option("--hold-back", help="with --check: ReLU counts that the cost law is not fitted on  [each in turn]")
def estimate(
    models: tuple[Path, ...],
    network: str,
    batch: int,
    party_threads: int,
    no_timing: bool,
    check: Path | None,
    hold_back: str | None,
) -> None:
    """What private inference with MODEL costs.

    MODEL is an ONNX file, a public graph (model.public.json) or the directory of a run. Bytes, messages and rounds are
    exact and follow from the public graph; seconds are modelled from a rehearsal of some ten seconds on this machine,
    with random weights.

    With --check several MODELs may be given, or none. Networks and threads are then those of the results, whose figures
    serve to compare with and for nothing else. Beside it stand the rehearsals that `bench --rehearse` made in turn with
    what it measured, and the cost law of each backend: fitted on some of the results' ReLU counts, predicting the
    others.
    """
    from pi_runtime.cli.estimate_tables import LEFT_OUT, exact_document, latency_document, print_estimate
    from pi_runtime.net.shaping import parse_profile
    from pi_runtime.preset import estimate as exact_part
    from pi_runtime.preset import rehearse as timed_part

    if check is not None:
        held = None if hold_back is None else whole_numbers("--hold-back", hold_back, kind="counts of ReLUs")
        _check(models, check, held)
        return
    if hold_back is not None:
        raise click.UsageError("--hold-back goes with --check: the cost law is fitted on measured rows")
    if len(models) != 1:
        raise click.UsageError(f"one MODEL is estimated at a time, got {len(models)}; several or none go with --check")
    (model,) = models
    profile = parse_profile(network)
    graph = load_graph(model)
    exact = exact_part.estimate(graph, batch)
    rehearsed = None if no_timing else timed_part.rehearse(graph, batch, threads=party_threads)
    modelled = None if rehearsed is None else timed_part.latency(exact, rehearsed, profile)
    print_estimate(graph, exact, rehearsed, modelled, profile)
    document: dict[str, Any] = {
        "model": str(model),
        "graph_hash": graph.public_hash,
        "relu_count": sum(layer.relu_count for layer in exact.layers),
        "batch": batch,
        **exact_document(exact),
        "latency": None,
        "left_out": LEFT_OUT,
    }
    if rehearsed is not None and modelled is not None:
        document["latency"] = latency_document(rehearsed, modelled, profile, party_threads)
    click.echo(json.dumps(document))


def add_estimate_verb(group: click.Group) -> None:
    """Adds ``estimate`` to ``group``."""
    group.add_command(estimate)


def load_graph(model: Path) -> Graph:
    """The graph of an ONNX file, a public graph, or a run directory with either.

    Raises:
        ConfigError: no such file.
        GraphError: it is damaged, or outside the operator set.
    """
    from pi_runtime.errors import ConfigError
    from pi_runtime.graph import load_public
    from pi_runtime.onnx_graph import load_onnx

    candidates = [model / "model.onnx", model / "model.public.json"] if model.is_dir() else [model]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ConfigError(
            f"{model} has no model.onnx or model.public.json; export the run first"
            if model.is_dir()
            else f"there is no file {model}; give an ONNX file, a model.public.json or the directory of a run"
        )
    return load_public(path) if path.suffix == ".json" else load_onnx(path)


def _check(models: tuple[Path, ...], results_path: Path, hold_back: tuple[int, ...] | None) -> None:
    from dataclasses import asdict

    from benchmarks.cost_law import predictions
    from benchmarks.foresight import foresight
    from benchmarks.results_file import load_results
    from benchmarks.tally import backend_tallies
    from pi_runtime.cli.estimate_check import check_model, print_checks, print_predictions, print_tallies

    results = load_results(results_path)
    predicted = predictions(results, hold_back)
    found = [check for model in models for check in check_model(load_graph(model), results, origin=model)]
    foreseen = foresight(results)
    print_checks(found, when="here and now")
    print_checks(foreseen, when="in turn with what was measured")
    print_predictions(predicted)
    tallies = backend_tallies(predicted)
    print_tallies(tallies)
    click.echo(
        json.dumps(
            {
                "results": str(results_path),
                "largest_error": max((abs(entry.error) for entry in found), default=None),
                "check": [{**asdict(entry), "error": entry.error} for entry in found],
                "rehearsed_largest_error": max((abs(entry.error) for entry in foreseen), default=None),
                "rehearsed": [{**asdict(entry), "error": entry.error} for entry in foreseen],
                "law_largest_error": max((abs(entry.error) for entry in predicted), default=None),
                "law_tallies": [asdict(entry) for entry in tallies],
                "law": [{**asdict(entry), "error": entry.error} for entry in predicted],
            }
        )
    )
