"""The `plaintext` backend: onnxruntime on the CPU. Nothing is hidden; it is the reference for logits and latency."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from pi_runtime.backend import Backend, Cost, LayerCost, RunCost
from pi_runtime.errors import ConfigError, GraphError, LocalProtocolError
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.plaintext_layers import profile_layers

# Errors only: onnxruntime otherwise writes to the terminal what it thinks of the machine.
_ERROR_SEVERITY = 3

PROFILED_RUNS = 5
"""Inferences that are profiled once a model, for the layers; a measurement sums up its runs by medians."""


class PlaintextBackend(Backend):
    """Float32 inference; ``setup`` is loading the session, ``offline`` nothing, no byte leaves a role.

    threads: of onnxruntime, for one operator; one operator runs at a time.

    What is timed is never profiled. The layers of an inference of one image are those of a run of its own, made by
    ``prepare`` after its clock has stopped (:mod:`pi_runtime.plaintext_layers`): each of PROFILED_RUNS is handed out
    once, and later inferences and larger batches have no layers.
    """

    name = "plaintext"

    def __init__(self, *, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigError(f"threads must be >= 1, got {threads}")
        self._threads = threads
        self._session: onnxruntime.InferenceSession | None = None
        self._input_shape: tuple[int, ...] = ()
        self._setup = Cost()
        self._profiled: deque[tuple[LayerCost, ...]] = deque()

    def prepare(self, model: Path) -> None:
        started = time.perf_counter()
        # onnxruntime runs more than the operator set; a file that the secure backends refuse is refused here as well.
        graph = load_onnx(model)
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), self._options(), providers=["CPUExecutionProvider"]
            )
        # onnxruntime's exceptions have no public base class.
        except Exception as error:
            raise GraphError(
                f"onnxruntime cannot run {model} ({str(error).splitlines()[0]}); export it again"
            ) from error
        self._input_shape = graph.input_shape
        self._setup = Cost(seconds=time.perf_counter() - started)
        self._profiled = deque(profile_layers(model, graph, self._options(), runs=PROFILED_RUNS))

    def offline(self, batch: int, count: int = 1) -> None:
        """Nothing is to be made ahead."""

    def infer(self, images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], RunCost]:
        if self._session is None:
            raise LocalProtocolError("the plaintext backend has no model; call prepare first")
        if images.ndim != 1 + len(self._input_shape) or images.shape[1:] != self._input_shape or not len(images):
            raise ConfigError(f"images must be [B, {', '.join(map(str, self._input_shape))}], got {images.shape}")
        feed = {self._session.get_inputs()[0].name: np.ascontiguousarray(images, dtype=np.float32)}
        started = time.perf_counter()
        (logits,) = self._session.run(None, feed)
        online = Cost(seconds=time.perf_counter() - started)
        layers = self._profiled.popleft() if len(images) == 1 and self._profiled else ()
        cost = RunCost(phases={"setup": self._setup, "offline": Cost(), "online": online}, layers=layers)
        return np.asarray(logits, dtype=np.float32), cost

    def close(self) -> None:
        self._session = None
        self._profiled.clear()

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR_SEVERITY
        return options
