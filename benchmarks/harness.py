"""Measures subjects on backends and writes what it cost, resumably.

At each stop of the sweep (:mod:`benchmarks.sweep`): set-up, warm-up, timed single-image inferences in turn; and once
for each pair a pass over test images in batches, whose logits are compared with onnxruntime's on the same images. What
is finished of a backend, a subject and a sweep is on disk at once, beside the results; the same command goes on from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.bookkeeping import layer_rows, phase_rows
from benchmarks.environment import describe_environment
from benchmarks.errors import MeasureError, ResultsError
from benchmarks.reference import reference_logits
from benchmarks.results_file import load_results
from benchmarks.schema import LOOPBACK, Results, Schedule
from benchmarks.subjects import SubjectFile, Subjects, load_subjects
from benchmarks.sweep import Bay, Pair, Progress, Station, stations
from pi_runtime.backend import Backend
from pi_runtime.backends import open_backend


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to measure.

    runs: timed inferences of one image for each subject and backend.
    warmup: inferences before them, in each sweep, that do not count.
    sweeps: passes over the subjects among which the runs are divided; never more than runs.
    subjects_at_once: subjects that are open together, with all their backends.
    accuracy_batch: images in one inference of the comparison with plaintext.
    threads: threads of each party, and of onnxruntime.
    """

    runs: int = 5
    warmup: int = 1
    sweeps: int = 2
    subjects_at_once: int = 1
    accuracy_batch: int = 50
    threads: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "warmup" else 1
            if value < least:
                raise MeasureError(f"{name} must be >= {least}, got {value}")

    def schedule(self, subjects: int) -> Schedule:
        """As the results record it, for so many subjects."""
        return Schedule(
            runs=self.runs,
            warmup=self.warmup,
            sweeps=min(self.sweeps, self.runs),
            subjects_at_once=min(self.subjects_at_once, subjects),
            accuracy_batch=self.accuracy_batch,
        )


def run_bench(
    *,
    subjects: Sequence[SubjectFile],
    backends: Sequence[str],
    results_path: Path,
    settings: BenchSettings | None = None,
    opener: Callable[[str], Backend] = open_backend,
    progress: Progress | None = None,
    command: str | None = None,
) -> Results:
    """Measures each subject on each backend and writes ``results_path``.

    Args:
        subjects: in the order of the first sweep and of the results.
        backends: names, in the order in which they take turns. Backends that the file has already, for the same
            inputs, are kept.
        opener: makes the backend of a name, one for each subject and sweep.
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
    loaded = load_subjects(subjects)
    names = tuple(dict.fromkeys(backends))
    bench = _Bench(loaded, names, settings, results_path, opener, progress or _silent, command)
    for station in stations(loaded.files, bench.results.schedule):
        bench.visit(station)
    return bench.finish()


class _Bench:
    """One call of :func:`run_bench`: the inputs, and the results so far."""

    def __init__(
        self,
        subjects: Subjects,
        backends: Sequence[str],
        settings: BenchSettings,
        path: Path,
        opener: Callable[[str], Backend],
        progress: Progress,
        command: str | None,
    ) -> None:
        self.subjects = subjects
        self.backends = backends
        self.threads = settings.threads
        self.path = path
        self.partial_path = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.opener = opener
        self.progress = progress
        environment = describe_environment(settings.threads)
        schedule = settings.schedule(len(subjects.files))
        identity = subjects.fingerprint(schedule, environment)
        self.results = self._earlier(identity) or Results(
            inputs_sha256=identity,
            subjects=subjects.describe(settings.threads),
            schedule=schedule,
            relu_layers=subjects.relu_layers(),
            environment=environment,
        )
        self.results = self.results.model_copy(update={"command": command or self.results.command})

    def visit(self, station: Station) -> None:
        """Does what is missing of one station: the timing of its sweep, and the comparison of each pair."""
        pairs = [(name, file) for name in self.backends for file in station.subjects]
        timed = {(row.backend, row.subject) for row in self.results.rows if row.sweep == station.sweep}
        untimed = [(name, file) for name, file in pairs if (name, file.name) not in timed]
        unchecked = [(name, file) for name, file in pairs if self.results.accuracy_of(name, file.name) is None]
        with Bay(self.opener, self.progress, self.subjects) as bay:
            bay.prepare([pair for pair in pairs if pair in untimed or pair in unchecked])
            if untimed:
                self._time(bay, untimed, station)
            for pair in unchecked:
                self._compare(bay, pair)

    def finish(self) -> Results:
        """Writes the results in place and removes the partial ones."""
        self.results.save(self.path)
        self.partial_path.unlink(missing_ok=True)
        return self.results

    def _time(self, bay: Bay, pairs: Sequence[Pair], station: Station) -> None:
        rows, layers = list(self.results.rows), list(self.results.layers)
        for pair, costs in zip(pairs, bay.time(pairs, station, self.results.schedule.warmup), strict=True):
            backend, subject = pair[0], pair[1].name
            rows += phase_rows(
                costs,
                backend=backend,
                subject=subject,
                network=LOOPBACK,
                sweep=station.sweep,
                images=1,
                byte_source=bay.byte_source(pair),
            )
            layers += layer_rows(costs, backend=backend, subject=subject, network=LOOPBACK, sweep=station.sweep)
        self._keep(self.results.model_copy(update={"rows": tuple(rows), "layers": tuple(layers)}))

    def _compare(self, bay: Bay, pair: Pair) -> None:
        file = pair[1]
        plain = reference_logits(file.path, file.images[file.chosen], self.threads)
        entry = bay.compare(pair, plain, self.results.schedule.accuracy_batch)
        self._keep(self.results.model_copy(update={"secure": (*self.results.secure, entry)}))

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


def _silent(what: str, done: int, total: int) -> None:
    """Takes the place of a progress display."""
