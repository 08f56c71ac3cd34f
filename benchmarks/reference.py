"""Plaintext logits by onnxruntime alone: what every backend's logits are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from benchmarks.errors import MeasureError

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

REFERENCE_BATCH = 64


def reference_logits(model: Path, images: Images, threads: int) -> Logits:
    """Logits [N, classes] of the ONNX file ``model`` for ``images`` [N, C, H, W], float32, normalised.

    Raises:
        MeasureError: onnxruntime cannot load or run the file, or the logits are not finite.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
        wire = session.get_inputs()[0].name
        parts: list[Any] = [
            session.run(None, {wire: images[start : start + REFERENCE_BATCH]})[0]
            for start in range(0, len(images), REFERENCE_BATCH)
        ]
    except Exception as error:  # onnxruntime's exceptions share no base but this
        reason = str(error).strip().splitlines()[0]
        raise MeasureError(f"onnxruntime cannot run {model}: {reason}; export the model again") from error
    logits: Logits = np.concatenate(parts).astype(np.float32, copy=False)
    if not np.isfinite(logits).all():
        raise MeasureError(f"{model} gives logits that are not finite in plaintext; train the network again")
    return logits


def accuracy(logits: Logits, labels: Labels) -> float:
    """The fraction of ``logits`` [N, classes] whose argmax is the label [N]."""
    return float(np.mean(logits.argmax(axis=1) == labels))
