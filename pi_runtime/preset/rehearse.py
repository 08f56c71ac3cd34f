"""A rehearsal: the seconds of a private inference on this machine, from the public graph alone.

:func:`rehearse` runs the protocol as it is, three processes over loopback, with random weights of the graph's shapes
and images of zeros; no instruction of it depends on the values, so it takes as long as a real inference. What the
operating system takes for each message is in it, and so are the stores on disk. A link is put under it by
:mod:`pi_runtime.preset.latency`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from pi_runtime.backend import LayerCost, RunCost
from pi_runtime.errors import ConfigError
from pi_runtime.graph import Graph
from pi_runtime.net.shaping import NetworkProfile
from pi_runtime.preset.backend import PresetBackend
from pi_runtime.preset.bundle import BundleLayout
from pi_runtime.preset.estimate import Estimate
from pi_runtime.preset.latency import DealtLayer, Latency, offline_latency, online_latency
from pi_runtime.preset.program import compile_program

MAX_REHEARSED_BYTES = 1 << 30
"""Most material of a bundle that a rehearsal makes; each role's own copy of it comes on top."""

_MEASURE_S = 4.0
_LEAST_RUNS = 3
_LINEAR = frozenset(("conv", "linear", "affine"))
_GATES = frozenset(("relu", "max_pool"))


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Seconds on this machine over loopback, each the median of ``runs``; the first three add up to online_s, nearly.

    linear_s: the server's products with its weights. gate_s: the ReLUs at both parties, their messages and the waiting
    for them. rest_s: all else, as the masking of the input and the public steps.
    round_s, relu_s: ``gate_s`` taken apart, by least squares over the layers, into what a round and what a ReLU takes;
    None where too few layers differ, or the machine was too restless to tell.
    offline_s: making, storing and opening the material of an inference. dealt: the part of it that each layer takes.
    """

    linear_s: float
    gate_s: float
    rest_s: float
    online_s: float
    offline_s: float
    dealt: tuple[DealtLayer, ...]
    round_s: float | None
    relu_s: float | None
    runs: int


def latency(exact: Estimate, rehearsed: Rehearsal, profile: NetworkProfile) -> dict[str, Latency]:
    """The modelled latency over a link of ``profile``, by phase (``online``, ``offline``)."""
    return {
        "online": online_latency(
            rehearsed.online_s, rounds=exact.online.rounds, sent_bytes=exact.online.sent_bytes, profile=profile
        ),
        "offline": offline_latency(
            rehearsed.offline_s,
            layers=rehearsed.dealt,
            rounds=exact.offline.rounds,
            sent_bytes=exact.offline.sent_bytes,
            profile=profile,
        ),
    }


def rehearse(graph: Graph, batch: int, *, threads: int = 1, measure_s: float = _MEASURE_S) -> Rehearsal:
    """Measures inferences of ``batch`` images on this machine, after set-up and a warm-up for about ``measure_s``.

    graph: public or not; no parameter is looked at. threads: CPU threads of each party's linear layers.

    Raises:
        GraphError: the graph is outside what the protocol takes.
        ConfigError: the material would not fit a rehearsal.
        BackendError: the processes cannot run here.
    """
    size = BundleLayout(compile_program(graph), batch).total_bytes
    if size > MAX_REHEARSED_BYTES:
        raise ConfigError(
            f"a measurement with batch {batch} needs {size:,} bytes of material, at most {MAX_REHEARSED_BYTES:,}; "
            "use a smaller batch, or --no-timing for the bytes alone"
        )
    images = np.zeros((batch, *graph.input_shape), np.float32)
    runs: list[RunCost] = []
    with (
        tempfile.TemporaryDirectory(prefix="pi-rehearsal-") as directory,
        PresetBackend(threads=threads, random_weights=True) as backend,
    ):
        public = Path(directory) / "model.public.json"
        graph.save_public(public)
        backend.prepare(public)
        backend.infer(images)
        until = time.perf_counter() + measure_s
        while len(runs) < _LEAST_RUNS or time.perf_counter() < until:
            runs.append(backend.infer(images)[1])
    return summarise(runs, batch)


def summarise(runs: list[RunCost], batch: int) -> Rehearsal:
    """The medians of inferences of ``batch`` images that were run."""
    online = [[layer for layer in run.layers if layer.phase == "online"] for run in runs]
    linear = [sum(layer.cost.seconds for layer in layers if layer.op in _LINEAR) for layers in online]
    gates = [sum(layer.cost.seconds for layer in layers if layer.op in _GATES) for layers in online]
    whole = [run.phases["online"].seconds for run in runs]
    round_s, relu_s = _per_round(online, batch)
    return Rehearsal(
        linear_s=median(linear),
        gate_s=median(gates),
        rest_s=median(total - own for total, own in zip(whole, map(sum, zip(linear, gates, strict=True)), strict=True)),
        online_s=median(whole),
        offline_s=median(run.phases["offline"].seconds for run in runs),
        dealt=_dealt([[layer for layer in run.layers if layer.phase == "offline"] for run in runs]),
        round_s=round_s,
        relu_s=relu_s,
        runs=len(runs),
    )


def _dealt(offline: list[list[LayerCost]]) -> tuple[DealtLayer, ...]:
    return tuple(
        DealtLayer(
            name=same[0].name,
            seconds=median(layer.cost.seconds for layer in same),
            sent_bytes=same[0].cost.sent_bytes,
        )
        for same in zip(*offline, strict=True)
    )


def _per_round(online: list[list[LayerCost]], batch: int) -> tuple[float | None, float | None]:
    """Seconds of a round and of a ReLU: the line through the layers' medians against their counts."""
    seconds: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for layers in online:
        for layer in layers:
            if layer.op == "relu" and layer.relu_count:
                seconds.setdefault(layer.name, []).append(layer.cost.seconds)
                counts[layer.name] = batch * layer.relu_count
    if len(set(counts.values())) < 3:
        return None, None
    slope, intercept = np.polyfit(list(counts.values()), [median(seconds[name]) for name in counts], 1)
    return (float(intercept), float(slope)) if min(intercept, slope) >= 0 else (None, None)
