"""Classifies images with one backend: labels, scores and what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pi_runtime.backend import PHASES, ROLES, Cost, RunCost
from pi_runtime.backends import open_backend
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.images import Float, class_names, find_images, load_images
from pi_runtime.onnx_graph import load_onnx

if TYPE_CHECKING:
    from pi_runtime.preset.client import PresetClient
    from pi_runtime.preset.roles import Access


def classify(
    model: Path,
    images: Sequence[Path],
    *,
    backend: str,
    threads: int = 1,
    port: int | None = None,
    top: int = 3,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs ``images`` through ``model`` in one batch, prints a table on stderr and returns the same as a document.

    Args:
        model: an ONNX file, or a run directory with a ``model.onnx``.
        images: files or folders.
        top: labels to print an image.
        options: more options of the backend.

    Raises:
        PiError: a file cannot be read, or the backend cannot run.
    """
    _check_top(top)
    path = model / "model.onnx" if model.is_dir() else model
    graph = load_onnx(path)
    files = find_images(images)
    batch = load_images(files, graph)
    chosen: dict[str, Any] = {"threads": threads, **(options or {})}
    if port is not None:
        chosen["port"] = port
    with open_backend(backend, **chosen) as engine:
        engine.prepare(path)
        engine.offline(len(batch))
        logits, cost = engine.infer(batch)
    found = _labelled(files, logits, graph, top)
    _print(found, cost, backend)
    return {"backend": backend, "model": str(path), "images": found, "cost": cost_document(cost)}


def classify_remotely(
    server: str, dealer: str, images: Sequence[Path], *, access: Access, batch: int = 1, threads: int = 1, top: int = 3
) -> dict[str, Any]:
    """As :func:`classify`, as the client of a server and a dealer elsewhere; nothing of the model is needed here.

    Takes the bundles that were prepared for ``batch`` images each, and makes one where none is left. The cost is what
    the client sees: what it sent, and what came from the others, less what TLS added to that.

    Raises:
        PiError: a file cannot be read, a peer cannot be reached or refuses, or the store cannot be used.
    """
    from pi_runtime.preset.input_range import check_images
    from pi_runtime.preset.roles import open_client

    _check_top(top)
    files = find_images(images)
    with open_client(server, dealer, access=access, threads=threads) as client:
        meter = _ClientMeter(client)
        graph = client.model.graph
        pictures = load_images(files, graph)
        check_images(pictures, client.model.program, files)
        meter.charge("setup")
        logits = []
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            client.reserve(len(part))
            meter.charge("offline")
            logits.append(client.infer(part))
            meter.charge("online")
        cost = RunCost(phases=meter.phases)
    found = _labelled(files, np.concatenate(logits).astype(np.float32), graph, top)
    _print(found, cost, "preset")
    return {"backend": "preset", "server": server, "images": found, "cost": cost_document(cost)}


class _ClientMeter:
    """Charges what a client did since the last charge to a phase."""

    def __init__(self, client: PresetClient) -> None:
        self.phases = dict.fromkeys(PHASES, Cost())
        self._client = client
        self._started = time.perf_counter()
        self._before = client.ledger.traffic()

    def charge(self, phase: str) -> None:
        now, traffic = time.perf_counter(), self._client.ledger.traffic()
        spent = (traffic - self._before).total
        from_dealer = sum(
            counts.payload_received_bytes + counts.framing_received_bytes
            for tag, counts in (traffic - self._before).by_tag.items()
            if tag == "dealt"
        )
        received = spent.payload_received_bytes + spent.framing_received_bytes
        self.phases[phase] += Cost(
            seconds=now - self._started,
            sent_bytes={
                "client": spent.payload_sent_bytes + spent.framing_sent_bytes + spent.tls_sent_bytes,
                "server": received - from_dealer,
                "dealer": from_dealer,
            },
            messages=spent.messages_sent + spent.messages_received,
            rounds=spent.rounds,
        )
        self._started, self._before = time.perf_counter(), traffic


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")


def _labelled(files: Sequence[Path], logits: Float, graph: Graph, top: int) -> list[dict[str, Any]]:
    labels = class_names(graph)
    scores = softmax(logits)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        {"image": str(file), "labels": [{"label": labels[i], "score": round(float(row[i]), 6)} for i in best]}
        for file, row, best in zip(files, scores, order, strict=True)
    ]


def softmax(logits: Float) -> Float:
    """Scores that add up to one along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Float = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


def cost_document(cost: RunCost) -> dict[str, Any]:
    """The cost by phase as plain values."""
    return {
        phase: {
            "seconds": round(part.seconds, 6),
            "sent_bytes": dict(part.sent_bytes),
            "messages": part.messages,
            "rounds": part.rounds,
        }
        for phase, part in cost.phases.items()
    }


def _print(found: list[dict[str, Any]], cost: RunCost, backend: str) -> None:
    console = Console(stderr=True, highlight=False)
    table = Table("image", "labels with their scores")
    for entry in found:
        labels = ", ".join(f"{label['label']} {label['score']:.3f}" for label in entry["labels"])
        table.add_row(entry["image"], labels)
    console.print(table)
    costs = Table("phase", "seconds", *(f"{role} sent, bytes" for role in ROLES), "rounds", title=f"cost on {backend}")
    for phase in PHASES:
        if phase in cost.phases:
            part = cost.phases[phase]
            sent = (f"{part.sent_bytes[role]:,}" for role in ROLES)
            costs.add_row(phase, f"{part.seconds:.4f}", *sent, str(part.rounds))
    console.print(costs)
