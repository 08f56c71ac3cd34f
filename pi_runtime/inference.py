"""Classifies images with one backend: labels, scores and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pi_runtime.backend import PHASES, ROLES, RunCost
from pi_runtime.backends import open_backend
from pi_runtime.errors import ConfigError
from pi_runtime.images import Float, class_names, find_images, load_images
from pi_runtime.onnx_graph import load_onnx


def classify(
    model: Path, images: Sequence[Path], *, backend: str, threads: int = 1, port: int | None = None, top: int = 3
) -> dict[str, Any]:
    """Runs ``images`` through ``model`` in one batch, prints a table on stderr and returns the same as a document.

    Args:
        model: an ONNX file, or a run directory with a ``model.onnx``.
        images: files or folders.
        top: labels to print an image.

    Raises:
        PiError: a file cannot be read, or the backend cannot run.
    """
    if top < 1:
        raise ConfigError(f"--top must be at least 1, got {top}")
    path = model / "model.onnx" if model.is_dir() else model
    graph = load_onnx(path)
    files = find_images(images)
    batch = load_images(files, graph)
    options: dict[str, Any] = {"threads": threads}
    if port is not None:
        options["port"] = port
    with open_backend(backend, **options) as engine:
        engine.prepare(path)
        engine.offline(len(batch))
        logits, cost = engine.infer(batch)
    labels = class_names(graph)
    scores = softmax(logits)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found = [
        {"image": str(file), "labels": [{"label": labels[i], "score": round(float(row[i]), 6)} for i in best]}
        for file, row, best in zip(files, scores, order, strict=True)
    ]
    _print(found, cost, backend)
    return {"backend": backend, "model": str(path), "images": found, "cost": cost_document(cost)}


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
