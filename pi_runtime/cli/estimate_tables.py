"""What ``estimate`` prints: tables for a reader on stderr, and plain values for the JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from pi_runtime.graph import Graph
    from pi_runtime.net.shaping import NetworkProfile
    from pi_runtime.preset.estimate import Estimate, Volume
    from pi_runtime.preset.latency import Latency
    from pi_runtime.preset.rehearse import Rehearsal

LEFT_OUT = (
    "TLS records (22 bytes each)",
    "names of parties longer than their roles (HELLO, MATERIAL)",
    "the BYE that ends a connection, refusals and what is repeated after them",
    "the stores' databases and the blocks of the file system",
    "in seconds: TLS, packet headers, slow start and loss; machines other than this one",
)


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


def latency_document(
    rehearsed: Rehearsal, modelled: Mapping[str, Latency], profile: NetworkProfile, threads: int
) -> dict[str, Any]:
    """The modelled part as plain values; the top level is of the online phase."""
    bandwidth = profile.bandwidth_mbps
    return {
        "kind": "modelled",
        "network": profile.name,
        "bandwidth_mbps": bandwidth if isfinite(bandwidth) else None,
        "rtt_ms": profile.rtt_ms,
        "party_threads": threads,
        **_terms(modelled["online"]),
        "offline": _terms(modelled["offline"]),
        "compute": {
            "kind": "measured",
            "runs": rehearsed.runs,
            "linear_seconds": rehearsed.linear_s,
            "gate_seconds": rehearsed.gate_s,
            "gate_seconds_a_round": rehearsed.round_s,
            "gate_seconds_a_relu": rehearsed.relu_s,
            "rest_seconds": rehearsed.rest_s,
            "offline_seconds": rehearsed.offline_s,
        },
    }


def _terms(modelled: Latency) -> dict[str, float]:
    return {
        "total_seconds": modelled.total_s,
        "compute_seconds": modelled.compute_s,
        "round_trip_seconds": modelled.round_trip_s,
        "transfer_seconds": modelled.transfer_s,
        "slowing_seconds": modelled.slowing_s,
        "overlap_seconds": modelled.overlap_s,
    }


def print_estimate(
    graph: Graph,
    exact: Estimate,
    rehearsed: Rehearsal | None,
    modelled: Mapping[str, Latency] | None,
    profile: NetworkProfile,
) -> None:
    """Prints the tables on stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(_layer_table(exact))
    console.print(_phase_table(exact, graph.relu_count))
    if rehearsed is not None and modelled is not None:
        console.print(_latency_table(exact, rehearsed, modelled, profile))
    console.print("left out: " + "; ".join(LEFT_OUT), style="dim")


def table(title: str, caption: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table whose first columns hold text and whose others hold numbers; nothing is cut off when narrow."""
    from rich.box import SIMPLE
    from rich.table import Table

    empty = Table(title=title, caption=caption, box=SIMPLE, pad_edge=False)
    for text in texts:
        empty.add_column(text, overflow="fold")
    for number in numbers:
        empty.add_column(number, justify="right", overflow="fold")
    return empty


def _layer_table(exact: Estimate) -> Table:
    """Layers that take part in any exchange; all others cost nothing."""
    shown = table(
        "exact bytes by layer and sender, framing included",
        "layers that are not here cost none",
        ("layer", "op"),
        ("ReLUs", "online\nserver", "online\nclient", "offline\ndealer", "offline\nclient"),
    )
    for layer in exact.layers:
        online, offline = layer.online.sent_bytes, layer.offline.sent_bytes
        sizes = (online["server"], online["client"], offline["dealer"], offline["client"])
        if any(sizes):
            shown.add_row(layer.name, layer.op, f"{layer.relu_count:,}", *(f"{size:,}" for size in sizes))
    return shown


def _phase_table(exact: Estimate, relu_count: int) -> Table:
    from pi_runtime.backend import ROLES

    shown = table(
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
        shown.add_row(phase, *(f"{number:,}" for number in numbers))
    return shown


def _latency_table(
    exact: Estimate, rehearsed: Rehearsal, modelled: Mapping[str, Latency], profile: NetworkProfile
) -> Table:
    caption = f"computing: medians of {rehearsed.runs} rehearsals here, messages over loopback included"
    if rehearsed.round_s is not None and rehearsed.relu_s is not None:
        caption += f"\ngates: {1e6 * rehearsed.round_s:.0f} µs a round and {1e9 * rehearsed.relu_s:.0f} ns a ReLU"
    shown = table(f"modelled latency on {profile.name}", caption, ("term",), ("online s", "offline s"))
    online, offline = modelled["online"], modelled["offline"]
    speed = f"at {profile.bandwidth_mbps:g} Mbit/s"
    rows: tuple[tuple[str, float | None, float | None], ...] = (
        ("linear layers", rehearsed.linear_s, None),
        ("gates, of both parties", rehearsed.gate_s, None),
        ("all else", rehearsed.rest_s, None),
        ("together, on loopback", online.compute_s, offline.compute_s),
        (
            f"rounds of {profile.rtt_ms:g} ms: {exact.online.rounds}, {exact.offline.rounds}",
            online.round_trip_s,
            offline.round_trip_s,
        ),
        (
            f"bytes {speed}: {exact.online.total_bytes:,}, {max(exact.offline.sent_bytes.values()):,}",
            online.transfer_s,
            offline.transfer_s,
        ),
        ("computing slowed by waits and bytes", online.slowing_s, offline.slowing_s),
        ("passes while computing", -online.overlap_s, -offline.overlap_s),
        ("together", online.total_s, offline.total_s),
    )
    for term, *seconds in rows:
        shown.add_row(term, *("" if value is None else f"{value:.4f}" for value in seconds))
    return shown
