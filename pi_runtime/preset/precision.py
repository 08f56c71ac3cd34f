"""What accuracy the secure network has at which scale: the bit-exact simulator over a test set, against onnxruntime.

Legend: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import ConfigError, GraphError, PiError
from pi_runtime.graph import Graph
from pi_runtime.images import Float, normalise
from pi_runtime.onnx_graph import load_onnx
from pi_runtime.plaintext_backend import PlaintextBackend
from pi_runtime.preset.calibrate import calibrate, calibration_choice, observe
from pi_runtime.preset.failure import failure_rate
from pi_runtime.preset.input_range import check_images
from pi_runtime.preset.linear_ops import pack, quantise
from pi_runtime.preset.plan import MAX_FAILURE_RATE, plan_of, with_plan
from pi_runtime.preset.precision_table import (
    Measured,
    Model,
    PlanOrigin,
    PrecisionTable,
    Refused,
    Row,
    read_table,
    write_table,
)
from pi_runtime.preset.program import Program, compile_program
from pi_runtime.preset.simulator import RandomPads, simulate

CALIBRATION_IMAGES = 128
BATCH = 32
PACKAGES = ("pi-pipeline", "numpy", "onnxruntime")

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network and the images to try it on; see :func:`choose_subject`.

    images, calibration: normalised float32 [N, C, H, W]. labels: int64 [N], of ``images``.
    plaintext: onnxruntime's logits, float32 [N, classes].
    """

    graph: Graph
    images: Float
    labels: Labels
    calibration: Float
    plaintext: Float
    seed: int
    fingerprint: str

    def empty_table(self) -> PrecisionTable:
        """The document without rows."""
        known = self.graph.metadata
        total = known.get("relu_total")
        return PrecisionTable(
            model=Model(
                name=str(known.get("name", "unnamed")),
                dataset=str(known.get("dataset", "unknown")),
                relu_total=total if type(total) is int else self.graph.relu_count,
                relu_count=self.graph.relu_count,
            ),
            images=len(self.images),
            calibration_images=len(self.calibration),
            seed=self.seed,
            plaintext_accuracy=_fraction(self.plaintext.argmax(1) == self.labels),
            plaintext_logit_rms=float(np.sqrt(np.mean(self.plaintext.astype(np.float64) ** 2))),
            fingerprint=self.fingerprint,
            versions={package: metadata.version(package) for package in PACKAGES},
        )


def choose_subject(model: Path, *, training: Pixels, test: Pixels, labels: Labels, count: int, seed: int) -> Subject:
    """``count`` test images (all, if there are fewer) and ``CALIBRATION_IMAGES`` training images, drawn at random.

    Args:
        model: ONNX file.
        training, test: uint8 [N, C, H, W].
        labels: int64 [N], of ``test``.

    Raises:
        GraphError: the file is damaged or outside the operator set.
        ConfigError: images that do not fit the network.
    """
    graph = load_onnx(model)
    for name, pixels in (("training", training), ("test", test)):
        if pixels.shape[1:] != graph.input_shape or not len(pixels):
            raise ConfigError(
                f"{model} takes images of {graph.input_shape}, the {name} images are {pixels.shape[1:]}, {len(pixels)}"
                " of them; give the data that the network was trained on"
            )
    chosen = calibration_choice(len(test), count, seed)
    images, labels = normalise(test[chosen], graph), labels[chosen].astype(np.int64)
    calibration = normalise(training[calibration_choice(len(training), CALIBRATION_IMAGES, seed)], graph)
    with PlaintextBackend() as backend:
        backend.prepare(model)
        parts = [backend.infer(images[start : start + BATCH])[0] for start in range(0, len(images), BATCH)]
    digest = hashlib.sha256(f"precision 1, seed {seed}".encode())
    for data in (model.read_bytes(), images.tobytes(), labels.tobytes(), calibration.tobytes()):
        digest.update(hashlib.sha256(data).digest())
    return Subject(
        graph=graph,
        images=images,
        labels=labels,
        calibration=calibration,
        plaintext=np.concatenate(parts),
        seed=seed,
        fingerprint=digest.hexdigest(),
    )


def fill_table(
    subject: Subject,
    scales: Sequence[int] | None,
    path: Path,
    *,
    advance: Callable[[int], None] = lambda images: None,
    tell: Callable[[str], None] = lambda line: None,
) -> PrecisionTable:
    """Measures a row for each scale and writes the document after each; rows that ``path`` has already are kept.

    Args:
        scales: fraction bits to calibrate for; None for the plan that the graph carries.
        path: of the JSON document. One of other images, another network or another seed is replaced.
        advance: told how many images were done.
        tell: told a line a row.

    Raises:
        ConfigError: ``path`` holds something else, or cannot be written.
    """
    table = subject.empty_table()
    if path.exists() and (before := read_table(path)).fingerprint == table.fingerprint:
        table = table.model_copy(update={"rows": before.rows})
    carried: PlanOrigin = "carried"
    wanted: list[tuple[int, PlanOrigin]] = (
        [(plan_of(subject.graph).frac_bits, carried)] if scales is None else [(bits, "calibrated") for bits in scales]
    )
    for bits, origin in wanted:
        if any((row.frac_bits, row.plan) == (bits, origin) for row in table.rows):
            advance(len(subject.images))
            continue
        row = measure(subject, bits, origin, advance)
        tell(summary(row))
        rows = sorted((*table.rows, row), key=lambda row: (row.plan, row.frac_bits))
        table = table.model_copy(update={"rows": tuple(rows)})
        write_table(table, path)
    return table


def measure(subject: Subject, frac_bits: int, origin: PlanOrigin, advance: Callable[[int], None]) -> Row:
    """The secure network with activations of ``frac_bits`` fraction bits, or with the plan that the graph carries.

    A plan that is refused, or does not cover the test images, gives a row that says so.
    """
    try:
        program, rate = _calibrated(subject, frac_bits) if origin == "calibrated" else _carried(subject)
        check_images(subject.images, program)
    except PiError as refusal:
        advance(len(subject.images))
        return Refused(frac_bits=frac_bits, plan=origin, reason=str(refusal))
    logits, wrapped = simulate_all(program, subject.images, [subject.seed, frac_bits], advance)
    error = logits - subject.plaintext
    rings = [step.ring_bits for step in program.gate_steps]
    return Measured(
        frac_bits=frac_bits,
        plan=origin,
        accuracy=_fraction(logits.argmax(1) == subject.labels),
        agreement_with_plaintext=_fraction(logits.argmax(1) == subject.plaintext.argmax(1)),
        max_abs_logit_error=float(np.abs(error).max()),
        rms_logit_error=float(np.sqrt(np.mean(error**2))),
        ring_bits_min=min(rings, default=0),
        ring_bits_max=max(rings, default=0),
        wrapped_elements=wrapped,
        failure_rate=rate,
    )


def _calibrated(subject: Subject, frac_bits: int) -> tuple[Program, float]:
    """The program for a scale, and its predicted failure rate."""
    found = calibrate(subject.graph, subject.calibration, frac_bits=frac_bits, seed=subject.seed)
    return compile_program(with_plan(subject.graph, found.plan)), found.failure_rate


def _carried(subject: Subject) -> tuple[Program, float]:
    """The program of the plan in the graph; its rate is predicted here, whatever the plan states."""
    program = compile_program(subject.graph)
    rate = failure_rate(program, observe(program, subject.calibration, seed=subject.seed).wrapping)
    if rate > MAX_FAILURE_RATE:
        raise GraphError(
            f"the plan of the graph predicts {rate:.1e} failed truncations an image, more than {MAX_FAILURE_RATE:g};"
            " export the model again with calibration images"
        )
    return program, rate


def summary(row: Row) -> str:
    """One line for people."""
    if isinstance(row, Refused):
        return f"{row.frac_bits} fraction bits: refused, {row.reason}"
    return (
        f"{row.frac_bits} fraction bits: accuracy {100 * row.accuracy:.2f} %,"
        f" same answer {100 * row.agreement_with_plaintext:.2f} %, largest logit error {row.max_abs_logit_error:.2g}"
    )


def simulate_all(
    program: Program, images: Float, seed: list[int], advance: Callable[[int], None]
) -> tuple[npt.NDArray[np.float64], int]:
    """Logits [N, classes] of normalised images [N, C, H, W], and how many kept elements were outside their gate's ring.

    seed: of the pads. advance: told how many images were done.
    """
    integers = quantise(program)
    weights = {step.name: (pack(step, integers[step.name][0]), integers[step.name][1]) for step in program.linear_steps}
    rng = np.random.default_rng(seed)
    logits, wrapped = [], 0
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        found = simulate(program, weights, part, RandomPads(len(part), rng))
        logits.append(found.logits)
        wrapped += sum(found.wrapped.values())
        advance(len(part))
    return np.concatenate(logits), wrapped


def _fraction(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean())
