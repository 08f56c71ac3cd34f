"""What `preset` answers to many more images than real processes are given: its bit-exact simulator over a test set.

The simulator computes the integers of the protocol with its truncation noise; no process, socket or bundle is in it, so
its entries say something of the answers and nothing of the cost, and stand apart from those of real processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.reference import accuracy, reference_logits
from benchmarks.schema import SimulatedAccuracy
from benchmarks.subjects import SubjectFile, spread
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.preset.input_range import check_images
from pi_runtime.preset.precision import simulate_all
from pi_runtime.preset.program import compile_program

BACKEND = "preset"
_PAD_SEED = 0


def simulated_accuracy(
    file: SubjectFile, count: int, *, threads: int, advance: Callable[[int], None] = lambda images: None
) -> SimulatedAccuracy:
    """Simulates ``count`` of the subject's images, or all there are, spread evenly, under the plan of its graph.

    Raises:
        GraphError, LocalProtocolError: the graph or an image is outside what the protocol takes.
    """
    chosen = spread(len(file.images), count)
    images = file.images[chosen]
    program = compile_program(load_onnx(Path(file.path)))
    check_images(images, program)
    logits, wrapped = simulate_all(program, images, [_PAD_SEED], advance)
    plain = reference_logits(file.path, images, threads)
    return SimulatedAccuracy(
        backend=BACKEND,
        subject=file.name,
        images=len(chosen),
        agreement_with_plaintext=float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
        max_abs_logit_error=float(np.abs(logits - plain).max()),
        accuracy=None if file.labels is None else accuracy(logits.astype(np.float32), file.labels[chosen]),
        wrapped_elements=wrapped,
    )
