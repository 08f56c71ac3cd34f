"""Measures subjects on backends and writes what it cost, resumably.

At each stop of the sweep (:mod:`benchmarks.sweep`), on one network after the other (:mod:`benchmarks.placement`) or on
all of them together: set-up, warm-up, timed single-image inferences in turn. Once for each backend and subject, on
loopback, as logits do not depend on the network: a pass over test images in batches, whose logits are compared with
onnxruntime's on the same images. What is finished is on disk at once, beside the results; the same command goes on
from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.bookkeeping import layer_rows, modelled_row, phase_rows
from benchmarks.environment import describe_environment
from benchmarks.errors import MeasureError, ResultsError
from benchmarks.foresight import BACKEND as FORESEEN
from benchmarks.foresight import rehearsed_rows
from benchmarks.links import link_of
from benchmarks.placement import Links, OpenLinks, place, unlinked
from benchmarks.reference import reference_logits
from benchmarks.results_file import load_results
from benchmarks.room import Room, available_memory
from benchmarks.schema import LOOPBACK, PHASES, Environment, Rehearsed, RehearsedLayer, Results, Row, Schedule
from benchmarks.simulated import BACKEND as SIMULATED
from benchmarks.simulated import simulated_accuracy
from benchmarks.subjects import SubjectFile, Subjects, load_subjects
from benchmarks.sweep import Bay, Berth, Progress, Station, stations
from pi_runtime.backend import Backend
from pi_runtime.backends import open_backend, own_packages
from pi_runtime.closing import Closing
from pi_runtime.networks import Networks


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to measure.

    runs: timed inferences of one image for each subject and backend; runs_on: on the networks named in it instead;
    runs_of: of the backends named in it instead. Where both are given, the fewer, unless runs_of has BACKEND@NETWORK.
    across_networks: backends that are open on all networks together and take turns on them, run by run.
    rehearse: on loopback a rehearsal of `preset` takes turns with it, to compare what `estimate` predicts.
    warmup: inferences before them, in each sweep, that do not count; no_warmup: backends that have none.
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
    runs_on: Mapping[str, int] = field(default_factory=dict)
    runs_of: Mapping[str, int] = field(default_factory=dict)
    across_networks: Sequence[str] = ()
    rehearse: bool = False
    no_warmup: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = asdict(self)
        del counts["across_networks"], counts["rehearse"], counts["no_warmup"]
        for table in ("runs_on", "runs_of"):
            counts |= {f"{table} {name}": runs for name, runs in counts.pop(table).items()}
        for name, value in counts.items():
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
            runs_on=dict(self.runs_on),
            runs_of=dict(self.runs_of),
            across_networks=tuple(self.across_networks),
            rehearse=self.rehearse,
            no_warmup=tuple(self.no_warmup),
        )


def run_bench(
    *,
    subjects: Sequence[SubjectFile],
    backends: Sequence[str],
    results_path: Path,
    settings: BenchSettings | None = None,
    networks: Sequence[str] = (LOOPBACK,),
    opener: Callable[..., Backend] = open_backend,
    links: Links | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    memory: Callable[[], int | None] = available_memory,
) -> Results:
    """Measures each subject on each backend and writes ``results_path``.

    Args:
        subjects: in the order of the first sweep and of the results.
        backends: names, in the order in which they take turns. Backends that the file has already, for the same
            inputs, are kept, and get the runs that they lack of those asked for.
        networks: profiles, in the order of the visits at each stop.
        opener: makes the backend of a name, one for each subject, network and sweep; told the options of the link
            where there is one.
        links: what this machine can do for other networks than loopback; found out if None.
        progress: called from this thread.
        command: what makes the results again, for the report.
        memory: bytes that are available, or None where that is not known.

    Raises:
        GraphError, BackendError: of the runtime.
        MeasureError: the inputs do not fit one another, or a backend gave something that is no logits (named).
        ConfigError: ``results_path`` cannot be written.
    """
    settings = settings or BenchSettings()
    if not backends:
        raise MeasureError("backends must name at least one backend")
    if settings.rehearse and FORESEEN not in backends:
        raise MeasureError(f"a rehearsal is one of {FORESEEN}, which backends must name; got {', '.join(backends)}")
    loaded = load_subjects(subjects)
    names = tuple(dict.fromkeys(backends))
    opened = OpenLinks(links or Networks(), progress or _silent)
    with _Bench(loaded, names, networks, settings, results_path, opener, opened, command, memory) as bench:
        for station in stations(loaded.files, bench.results.schedule):
            bench.visit(station)
        return bench.finish()


class _Bench(Closing):
    """One call of :func:`run_bench`: the inputs, and the results so far."""

    def __init__(
        self,
        subjects: Subjects,
        backends: Sequence[str],
        networks: Sequence[str],
        settings: BenchSettings,
        path: Path,
        opener: Callable[..., Backend],
        links: OpenLinks,
        command: str | None,
        memory: Callable[[], int | None],
    ) -> None:
        self.subjects = subjects
        self.backends = backends
        self.threads = settings.threads
        self.path = path
        self.partial_path = path.with_name(f"{path.stem}.partial{path.suffix}")
        self.opener = opener
        self.links = links
        self.memory = memory
        self.placement = place(backends, networks, links.reach)
        environment = describe_environment(settings.threads)
        schedule = settings.schedule(len(subjects.files))
        self.results = self._earlier(schedule, environment) or Results(
            inputs_sha256=subjects.fingerprint(schedule, environment),
            subjects=subjects.describe(settings.threads),
            schedule=schedule,
            relu_layers=subjects.relu_layers(),
            environment=environment,
        )
        self.results = self.results.model_copy(
            update={
                "command": command or self.results.command,
                # Not part of the identity: another backend in the same file must not make the first ones run again.
                "environment": _with_packages(self.results.environment, backends),
            }
        )

    def visit(self, station: Station) -> None:
        """Does what is missing of one station: its timing on every network, and each comparison with plaintext."""
        berths = [
            Berth(backend=name, subject=file, network=network)
            for network in self.placement.measured
            for name in self.backends
            for file in station.subjects
            if name not in file.left_out
        ]
        if self.results.schedule.rehearse:
            # At the other end of every turn, so that both come after the same others as often.
            berths += [replace(berth, rehearsal=True) for berth in reversed(berths) if _is_foreseen(berth)]
        untimed = {berth: share for berth in berths if (share := self._untimed(berth, station.sweep))}
        for group in self._groups([berth for berth in berths if berth in untimed or self._unchecked(berth)]):
            left = group
            while left:
                done = self._open_and_measure(station, left, untimed)
                left = [berth for berth in left if berth not in done]

    def finish(self) -> Results:
        """Adds what is simulated and modelled, writes the results in place and removes the partial ones."""
        self._simulate()
        self._model()
        self.results.save(self.path)
        self.partial_path.unlink(missing_ok=True)
        return self.results

    def close(self) -> None:
        self.links.close()

    def _untimed(self, berth: Berth, sweep: int) -> range | None:
        """The berth's runs that are missing at the end of the sweep; None where there are none."""
        if not berth.rehearsal and berth.backend not in self.placement.measured[berth.network]:
            return None
        done = sum(len(entry.seconds) for entry in self._timed(berth))
        return range(done, self.results.schedule.share(sweep, berth.network, berth.backend).stop) or None

    def _timed(self, berth: Berth) -> Sequence[Row | Rehearsed]:
        """What was timed of the berth so far: its online phase, an entry for each time that it was open."""
        if berth.rehearsal:
            wanted = (berth.subject.name, "online")
            return [entry for entry in self.results.rehearsed if (entry.subject, entry.phase) == wanted]
        place = (berth.backend, berth.subject.name, berth.network, "measured", "online")
        rows = self.results.rows
        return [row for row in rows if (row.backend, row.subject, row.network, row.kind, row.phase) == place]

    def _unchecked(self, berth: Berth) -> bool:
        """Whether the berth is where its backend's logits are compared with plaintext, and they have not been."""
        if berth.rehearsal:
            return False
        return berth.network == LOOPBACK and self.results.accuracy_of(berth.backend, berth.subject.name) is None

    def _groups(self, berths: Sequence[Berth]) -> Iterator[list[Berth]]:
        """What is open together: first what takes turns on all networks, then on each network the other backends.

        Of these one of a single run takes no turns, and gets all memory.
        """
        schedule = self.results.schedule
        across = [berth for berth in berths if berth.backend in schedule.across_networks]
        if across:
            yield across
        for network in dict.fromkeys(berth.network for berth in berths):
            there = [berth for berth in berths if berth.network == network and berth not in across]
            together = [berth for berth in there if schedule.total(network, berth.backend) > 1]
            if together:
                yield together
            for berth in there:
                if berth not in together:
                    yield [berth]

    def _open_and_measure(
        self, station: Station, group: Sequence[Berth], untimed: Mapping[Berth, range]
    ) -> Sequence[Berth]:
        """Measures as many of the group as memory is enough for, and tells which."""
        networks = tuple(dict.fromkeys(berth.network for berth in group))
        for network in networks:
            self._keep(self.links.ready(network, self.results))
        bay = Bay(self._opened, self.links.progress, self.subjects, Room(self.memory), self.results.schedule)
        with self.links.blaming(networks), bay:
            together = bay.prepare(group, timed=untimed)
            runs = {berth: untimed[berth] for berth in together if berth in untimed}
            if runs:
                self._time(bay, runs, station)
            for berth in together:
                if self._unchecked(berth):
                    self._compare(bay, berth)
        for network in networks:
            self._keep(self.links.after(network, self.results))
        return together

    def _opened(self, berth: Berth) -> Backend:
        options = self.links.options(berth.network)
        return self.opener(berth.backend, **options, **({"random_weights": True} if berth.rehearsal else {}))

    def _time(self, bay: Bay, runs: Mapping[Berth, range], station: Station) -> None:
        rows, layers, rehearsed = list(self.results.rows), list(self.results.layers), list(self.results.rehearsed)
        for berth, costs in bay.time(runs, station).items():
            backend, subject, network = berth.backend, berth.subject.name, berth.network
            sweep = len(self._timed(berth))
            if berth.rehearsal:
                seconds = {phase: [run.phases[phase].seconds for run in costs] for phase in PHASES}
                dealt = [
                    RehearsedLayer(layer=row.layer, seconds=row.seconds, sent_bytes=row.sent_bytes)
                    for row in layer_rows(costs, backend=backend, subject=subject, network=network, sweep=sweep)
                    if row.phase == "offline"
                ]
                graph = self.subjects.graphs[subject]
                rehearsed += rehearsed_rows(seconds, dealt, graph=graph, subject=subject, sweep=sweep)
                continue
            rows += phase_rows(
                costs,
                backend=backend,
                subject=subject,
                network=network,
                sweep=sweep,
                images=1,
                byte_source=bay.byte_source(berth),
            )
            layers += layer_rows(costs, backend=backend, subject=subject, network=network, sweep=sweep)
        measured = {"rows": tuple(rows), "layers": tuple(layers), "rehearsed": tuple(rehearsed)}
        self._keep(self.results.model_copy(update=measured))

    def _simulate(self) -> None:
        """Asks the simulator about each subject that wants more images of it than were asked before."""
        wanted = self.subjects.files if SIMULATED in self.backends else ()
        for file in wanted:
            count = min(file.simulated_images, len(file.images))
            before = self.results.simulation_of(SIMULATED, file.name)
            if count <= (before.images if before else 0):
                continue
            label, done = f"{SIMULATED}: simulated images ({file.name})", 0

            def advance(images: int, label: str = label, count: int = count) -> None:
                nonlocal done
                done += images
                self.links.progress(label, done, count)

            entry = simulated_accuracy(file, count, threads=self.threads, advance=advance)
            others = tuple(known for known in self.results.simulated if known != before)
            self._keep(self.results.model_copy(update={"simulated": (*others, entry)}))

    def _model(self) -> None:
        """Computes rows of the networks that a backend cannot be measured on here from those on loopback."""
        for network in dict.fromkeys(network for _, network in self.placement.modelled):
            self.results = unlinked(network, self.results)
        there = {(r.backend, r.subject, r.network, r.sweep, r.phase) for r in self.results.rows if r.kind == "modelled"}
        added = [
            modelled_row(row, network=network, link=link)
            for backend, network in self.placement.modelled
            if (link := link_of(network)) is not None
            for row in self.results.rows
            if (row.backend, row.network, row.kind) == (backend, LOOPBACK, "measured")
            and (backend, row.subject, network, row.sweep, row.phase) not in there
        ]
        self.results = self.results.model_copy(update={"rows": (*self.results.rows, *added)})

    def _compare(self, bay: Bay, berth: Berth) -> None:
        file = berth.subject
        plain = reference_logits(file.path, file.images[file.chosen], self.threads)
        entry = bay.compare(berth, plain, self.results.schedule.accuracy_batch)
        self._keep(self.results.model_copy(update={"secure": (*self.results.secure, entry)}))

    def _earlier(self, schedule: Schedule, environment: Environment) -> Results | None:
        """What an earlier call with the same inputs has written: the unfinished results, else the finished ones.

        It may have asked for fewer runs; those that are missing are added to what it measured.
        """
        for path in (self.partial_path, self.path):
            try:
                earlier = load_results(path)
            except ResultsError:
                continue  # absent or unusable: measured again and written over
            same = earlier.inputs_sha256 == self.subjects.fingerprint(earlier.schedule, environment)
            if same and earlier.is_part_of(schedule):
                identity = self.subjects.fingerprint(schedule, environment)
                return earlier.model_copy(update={"schedule": schedule, "inputs_sha256": identity})
        return None

    def _keep(self, results: Results) -> None:
        if results is not self.results:
            self.results = results
            results.save(self.partial_path)


def _is_foreseen(berth: Berth) -> bool:
    """Whether it is what a rehearsal takes turns with."""
    return (berth.backend, berth.network) == (FORESEEN, LOOPBACK)


def _with_packages(environment: Environment, backends: Sequence[str]) -> Environment:
    """With what backends run on that have an environment of their own; a package of both is ours."""
    packages = environment.packages
    for backend in backends:
        packages = own_packages(backend) | packages
    return environment.model_copy(update={"packages": packages})


def _silent(what: str, done: int, total: int) -> None:
    """Takes the place of a progress display."""
