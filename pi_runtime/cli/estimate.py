"""The verb ``estimate``: what private inference with a model costs, without running it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pi_runtime.graph import Graph
    from pi_runtime.net.shaping import NetworkProfile
    from pi_runtime.preset.estimate import Compute, Estimate, Latency, Volume

_COUNT = click.IntRange(min=1)
LEFT_OUT = (
    "TLS records (22 bytes each)",
    "names of parties longer than their roles (HELLO, MATERIAL)",
    "the BYE that ends a connection, refusals and what is repeated after them",
    "the stores' databases and the blocks of the file system",
    "in seconds: the operating system's time for each message, TLS, other load, the offline phase",
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--network", default="wan", show_default=True, help="loopback, lan, wan, mobile or bandwidth_mbps=50,rtt_ms=20"
)
@click.option("--batch", default=1, show_default=True, type=_COUNT, help="images of an inference")
@click.option(
    "--party-threads", "--threads", default=1, show_default=True, type=_COUNT, help="CPU threads of the linear layers"
)
@click.option("--no-timing", is_flag=True, help="bytes alone; measure nothing")
def estimate(model: Path, network: str, batch: int, party_threads: int, no_timing: bool) -> None:
    """What private inference with MODEL costs, without running it.

    MODEL is an ONNX file, a public graph (model.public.json) or the directory of a run. Bytes, messages and rounds are
    exact and follow from the public graph; seconds are modelled from a measurement of this machine of about two
    seconds.
    """
    from pi_runtime.net.shaping import parse_profile
    from pi_runtime.preset import estimate as preset

    profile = parse_profile(network)
    graph = load_graph(model)
    exact = preset.estimate(graph, batch)
    compute = None if no_timing else preset.rehearse(graph, batch, threads=party_threads)
    modelled = None if compute is None else preset.latency(exact.online, compute, profile)
    _print(graph, exact, compute, modelled, profile)
    document: dict[str, Any] = {
        "model": str(model),
        "graph_hash": graph.public_hash,
        "relu_count": sum(layer.relu_count for layer in exact.layers),
        "batch": batch,
        **exact_document(exact),
        "latency": None,
        "left_out": LEFT_OUT,
    }
    if compute is not None and modelled is not None:
        document["latency"] = _latency_document(compute, modelled, profile, party_threads)
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


def exact_document(exact: Estimate) -> dict[str, Any]:
    """The exact part as plain values; of the layers those with weights or ReLUs, as all others never cost any bytes."""
    return {
        "setup": _volume_document(exact.setup),
        "offline": _volume_document(exact.offline),
        "online": {
            **_volume_document(exact.online),
            "input_payload_bytes": exact.input_bytes,
            "opening_payload_bytes": exact.opening_bytes,
            "answer_payload_bytes": exact.answer_bytes,
            "logit_payload_bytes": exact.logit_bytes,
        },
        "stored": {
            "kind": "exact",
            "server_bundle_bytes": exact.server_bundle_bytes,
            "client_bundle_bytes": exact.client_bundle_bytes,
        },
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "relu_count": layer.relu_count,
                "online": _volume_document(layer.online),
                "offline": _volume_document(layer.offline),
            }
            for layer in exact.layers
            if layer.op == "relu" or layer.offline.total_bytes
        ],
    }


def _volume_document(volume: Volume) -> dict[str, Any]:
    return {
        "kind": "exact",
        "payload_bytes": dict(volume.payload_bytes),
        "framing_bytes": dict(volume.framing_bytes),
        "sent_bytes": volume.sent_bytes,
        "total_bytes": volume.total_bytes,
        "messages": volume.messages,
        "rounds": volume.rounds,
    }


def _latency_document(compute: Compute, modelled: Latency, profile: NetworkProfile, threads: int) -> dict[str, Any]:
    bandwidth = profile.bandwidth_mbps
    return {
        "kind": "modelled",
        "network": profile.name,
        "bandwidth_mbps": bandwidth if isfinite(bandwidth) else None,
        "rtt_ms": profile.rtt_ms,
        "party_threads": threads,
        "total_seconds": modelled.total_s,
        "compute_seconds": modelled.compute_s,
        "round_trip_seconds": modelled.round_trip_s,
        "transfer_seconds": modelled.transfer_s,
        "compute": {
            "kind": "measured",
            "runs": compute.runs,
            "server_linear_seconds": compute.server_linear_s,
            "server_gate_seconds": compute.server_gate_s,
            "server_public_seconds": compute.server_public_s,
            "client_seconds": compute.client_s,
        },
    }


def _print(
    graph: Graph, exact: Estimate, compute: Compute | None, modelled: Latency | None, profile: NetworkProfile
) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(_layer_table(exact))
    console.print(_phase_table(exact, graph.relu_count))
    if compute is not None and modelled is not None:
        console.print(_latency_table(exact, compute, modelled, profile))
    console.print("left out: " + "; ".join(LEFT_OUT), style="dim")


def _table(title: str, caption: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table whose first columns hold text and whose others hold numbers; nothing is cut off when narrow."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, caption=caption, box=SIMPLE, pad_edge=False)
    for text in texts:
        table.add_column(text, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", overflow="fold")
    return table


def _layer_table(exact: Estimate) -> Table:
    """Layers that take part in any exchange; all others cost nothing."""
    table = _table(
        "exact bytes by layer and sender, framing included",
        "layers that are not here cost none",
        ("layer", "op"),
        ("ReLUs", "online\nserver", "online\nclient", "offline\ndealer", "offline\nclient"),
    )
    for layer in exact.layers:
        online, offline = layer.online.sent_bytes, layer.offline.sent_bytes
        sizes = (online["server"], online["client"], offline["dealer"], offline["client"])
        if any(sizes):
            table.add_row(layer.name, layer.op, f"{layer.relu_count:,}", *(f"{size:,}" for size in sizes))
    return table


def _phase_table(exact: Estimate, relu_count: int) -> Table:
    from pi_runtime.backend import ROLES

    table = _table(
        f"exact bytes by phase: {relu_count:,} ReLUs an image, batch {exact.batch}",
        f"online payload: input {exact.input_bytes:,}, openings {exact.opening_bytes:,}, "
        f"answers {exact.answer_bytes:,}, logits {exact.logit_bytes:,}\n"
        f"a bundle's file: {exact.server_bundle_bytes:,} at the server, {exact.client_bundle_bytes:,} at the client",
        ("phase",),
        (*(f"{role}\nsends" for role in ROLES), "of it\nframing", "messages", "rounds"),
    )
    for phase, volume in (("setup", exact.setup), ("offline", exact.offline), ("online", exact.online)):
        numbers = (
            *(volume.sent_bytes[role] for role in ROLES),
            sum(volume.framing_bytes.values()),
            volume.messages,
            volume.rounds,
        )
        table.add_row(phase, *(f"{number:,}" for number in numbers))
    return table


def _latency_table(exact: Estimate, compute: Compute, modelled: Latency, profile: NetworkProfile) -> Table:
    table = _table(
        f"modelled online latency on {profile.name}",
        f"computing: the median of {compute.runs} runs here",
        ("term",),
        ("seconds",),
    )
    for term, seconds in (
        ("server, linear layers", compute.server_linear_s),
        ("server, gates", compute.server_gate_s),
        ("server, public steps", compute.server_public_s),
        ("client", compute.client_s),
        (f"{exact.online.rounds} rounds of {profile.rtt_ms:g} ms", modelled.round_trip_s),
        (f"{exact.online.total_bytes:,} bytes at {profile.bandwidth_mbps:g} Mbit/s", modelled.transfer_s),
        ("together", modelled.total_s),
    ):
        table.add_row(term, f"{seconds:.4f}")
    return table
