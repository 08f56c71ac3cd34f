"""Runs the full and the linearized network on each backend and writes what it cost.

For each backend: set-up, warm-up, then timed single-image inferences in which the two networks take turns, so that a
drift of the machine hits both alike; then a pass over test images in batches, whose logits are compared with
onnxruntime's on the same images. What is finished is on disk at once, beside the results; the same command goes on
from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.bookkeeping import layer_rows, phase_rows
from benchmarks.environment import describe_environment
from benchmarks.errors import MeasureError, ResultsError
from benchmarks.reference import Images, Labels, Logits, accuracy, reference_logits
from benchmarks.schema import Accuracy, GraphName, Results, SecureAccuracy, load_results
from benchmarks.subjects import Subjects, fingerprint, load_subjects
from pi_runtime.backend import Backend, RunCost
from pi_runtime.backends import open_backend

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to measure.

    runs: timed inferences of one image for each network and backend.
    warmup: inferences before them that do not count.
    accuracy_images: test images whose secure logits are compared, spread evenly over the test set; of the full network,
        which is there to be compared with, a fifth of them.
    accuracy_batch: images in one inference of that comparison.
    threads: threads of each party.
    """

    runs: int = 5
    warmup: int = 1
    accuracy_images: int = 100
    accuracy_batch: int = 50
    threads: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "warmup" else 1
            if value < least:
                raise MeasureError(f"{name} must be >= {least}, got {value}")


def run_bench(
    *,
    full: Path | None,
    linearized: Path,
    images: Images,
    labels: Labels | None,
    backends: Sequence[str],
    results_path: Path,
    settings: BenchSettings | None = None,
    opener: Callable[[str], Backend] = open_backend,
    progress: Progress | None = None,
    command: str | None = None,
) -> Results:
    """Measures ``linearized`` (and ``full``, where there is one) on each backend and writes ``results_path``.

    Args:
        full: the ONNX file with all ReLUs.
        linearized: the ONNX file with the kept ones.
        images: the test set, float32 [N, C, H, W], normalised; all of it for the plaintext accuracy.
        labels: int64 [N], for the accuracies; None where there are none.
        backends: names; measured in this order. Backends that the file has already, for the same inputs, are kept.
        opener: makes the backend of a name, one for each network.
        progress: called from this thread.
        command: what makes the results again, for the report.

    Raises:
        GraphError, BackendError: of the runtime.
        MeasureError: the inputs do not fit one another, or a backend gave something that is no logits (named).
        ConfigError: ``results_path`` cannot be written.
    """
    settings = settings or BenchSettings()
    if not backends:
        raise MeasureError("backends must name at least one backend")
    subjects = load_subjects(full, linearized)
    images, labels = _checked_images(images, labels, subjects)
    bench = _Bench(subjects, images, labels, settings, results_path, opener, progress or _silent, command)
    for name in dict.fromkeys(backends):
        bench.measure(name)
    return bench.finish()


class _Bench:
    """One call of :func:`run_bench`: the inputs, and the results so far."""

    def __init__(
        self,
        subjects: Subjects,
        images: Images,
        labels: Labels | None,
        settings: BenchSettings,
        path: Path,
        opener: Callable[[str], Backend],
        progress: Progress,
        command: str | None,
    ) -> None:
        self.subjects = subjects
        self.images = images
        self.settings = settings
        self.path = path
        self.partial_path = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.opener = opener
        self.progress = progress
        environment = describe_environment(settings.threads)
        self.reference: dict[GraphName, Logits] = {
            graph: reference_logits(file, images, settings.threads) for graph, file in subjects.files.items()
        }
        self.labels = labels
        chosen = {"full": max(1, settings.accuracy_images // 5), "linearized": settings.accuracy_images}
        self.chosen = {graph: _evenly(len(images), chosen[graph]) for graph in subjects.files}
        identity = fingerprint(subjects, images, labels, asdict(settings), environment)
        self.results = self._earlier(identity) or Results(
            inputs_sha256=identity,
            model=subjects.facts(),
            accuracy=Accuracy(
                baseline_test=self._plaintext_accuracy("full"),
                linearized_test=self._plaintext_accuracy("linearized"),
                test_images=len(images),
            ),
            relu_layers=subjects.relu_layers(),
            environment=environment,
        )
        self.results = self.results.model_copy(update={"command": command or self.results.command})

    def measure(self, name: str) -> None:
        """Does what is missing of one backend: its timing, and the comparison of each network."""
        untimed = name not in self.results.backends
        unchecked = [graph for graph in self.subjects.files if self.results.secure(name, graph) is None]
        with ExitStack() as stack:
            opened: dict[GraphName, Backend] = {}
            for graph, file in self.subjects.files.items():
                if untimed or graph in unchecked:
                    self.progress(f"{name}: set-up ({graph})", 0, 1)
                    opened[graph] = stack.enter_context(self.opener(name))
                    opened[graph].prepare(file)
                    self.progress(f"{name}: set-up ({graph})", 1, 1)
            if untimed:
                self._time(name, opened)
            for graph in unchecked:
                self._check(name, graph, opened[graph])

    def finish(self) -> Results:
        """Writes the results in place and removes the partial ones."""
        self.results.save(self.path)
        self.partial_path.unlink(missing_ok=True)
        return self.results

    def _time(self, name: str, opened: dict[GraphName, Backend]) -> None:
        costs: dict[GraphName, list[RunCost]] = {graph: [] for graph in opened}
        steps = self.settings.warmup + self.settings.runs
        for step in range(steps):
            self.progress(f"{name}: timed runs", step, steps)
            image = self.images[step % len(self.images)][np.newaxis]
            # The order turns around at each step: neither network always runs on the other's warm caches.
            for graph in list(opened) if step % 2 == 0 else reversed(list(opened)):
                cost = self._infer(name, graph, opened[graph], image)[1]
                if step >= self.settings.warmup:
                    costs[graph].append(cost)
        self.progress(f"{name}: timed runs", steps, steps)
        rows, layers = list(self.results.rows), list(self.results.layers)
        for graph, runs in costs.items():
            rows += phase_rows(
                runs,
                backend=name,
                graph=graph,
                relu_count=self.subjects.graphs[graph].relu_count,
                images=1,
                network="loopback",
                byte_source=str(getattr(opened[graph], "byte_source", None) or ""),
            )
            layers += layer_rows(runs, backend=name, graph=graph)
        self._keep(self.results.model_copy(update={"rows": tuple(rows), "layers": tuple(layers)}))

    def _check(self, name: str, graph: GraphName, backend: Backend) -> None:
        parts: list[Logits] = []
        batch = self.settings.accuracy_batch
        chosen = self.chosen[graph]
        for start in range(0, len(chosen), batch):
            self.progress(f"{name}: test images ({graph})", start, len(chosen))
            parts.append(self._infer(name, graph, backend, self.images[chosen[start : start + batch]])[0])
        self.progress(f"{name}: test images ({graph})", len(chosen), len(chosen))
        logits, plain = np.concatenate(parts), self.reference[graph][chosen]
        entry = SecureAccuracy(
            backend=name,
            graph=graph,
            images=len(chosen),
            agreement_with_plaintext=float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
            max_abs_logit_error=float(np.abs(logits.astype(np.float64) - plain).max()),
            accuracy=None if self.labels is None else accuracy(logits, self.labels[chosen]),
        )
        checked = self.results.accuracy.model_copy(update={"secure": (*self.results.accuracy.secure, entry)})
        self._keep(self.results.model_copy(update={"accuracy": checked}))

    def _infer(self, name: str, graph: GraphName, backend: Backend, images: Images) -> tuple[Logits, RunCost]:
        logits, cost = backend.infer(images)
        expected = (len(images), *self.subjects.graphs[graph].output_shape)
        if logits.shape != expected:
            raise MeasureError(f"backend {name!r} gave logits of shape {logits.shape} for {graph}, expected {expected}")
        if not np.isfinite(logits).all():
            raise MeasureError(f"backend {name!r} gave logits that are not finite for {graph}; nothing was recorded")
        return logits, cost

    def _plaintext_accuracy(self, graph: GraphName) -> float | None:
        if self.labels is None or graph not in self.reference:
            return None
        return accuracy(self.reference[graph], self.labels)

    def _earlier(self, identity: str) -> Results | None:
        """What an earlier call with the same inputs has written: the unfinished results, else the finished ones."""
        for path in (self.partial_path, self.path):
            try:
                earlier = load_results(path)
            except ResultsError:
                continue  # absent or unusable: measured again and written over
            if earlier.inputs_sha256 == identity:
                return earlier
        return None

    def _keep(self, results: Results) -> None:
        self.results = results
        results.save(self.partial_path)


def _checked_images(images: Images, labels: Labels | None, subjects: Subjects) -> tuple[Images, Labels | None]:
    expected = subjects.graphs["linearized"].input_shape
    if images.ndim != 1 + len(expected) or images.shape[1:] != expected or not len(images):
        raise MeasureError(f"images must have shape [N, {', '.join(map(str, expected))}], got {list(images.shape)}")
    if labels is not None and labels.shape != (len(images),):
        raise MeasureError(f"labels must have shape [{len(images)}], one an image, got {list(labels.shape)}")
    return np.ascontiguousarray(images, dtype=np.float32), labels


def _evenly(total: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of ``total`` items, spread evenly: a test set sorted by class gives every class."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


def _silent(what: str, done: int, total: int) -> None:
    """Takes the place of a progress display."""
