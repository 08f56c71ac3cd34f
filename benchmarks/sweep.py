"""The order of a measurement: sweeps over the subjects, and within them every backend in turn, run by run.

A machine drifts. Two figures can be compared when they were taken in the same seconds: all backends of one subject are
open together, each repetition runs every one of them once, and the order turns around at each repetition, so that none
always runs on another's warm caches. A backend of fewer runs sits out repetitions, evenly over their time; one of a
single run takes no turns and is open alone. Where memory is too short for all of them, a backend with all its subjects
follows the others, and only one that does not fit by itself is divided, between subjects. What it takes is seen when it
has run once, so the first warm-up of each follows its set-up.

The logits of the timed runs are those that are compared with plaintext's; only images that none of them had run again.

Networks are visited one after the other, as every backend on every network at once takes more memory than most machines
have; backends that are named for it are open on all networks together and take turns on them too.

Subjects are too many to be open together; so that drift hits them alike, they are all visited in each of several
sweeps, every other one in reverse order, and the runs are divided among the sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchmarks.errors import MeasureError
from benchmarks.reference import Images, Logits, accuracy
from benchmarks.room import Room
from benchmarks.schema import LOOPBACK, Schedule, SecureAccuracy
from benchmarks.subjects import SubjectFile, Subjects, spread
from pi_runtime.backend import Backend, RunCost

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Berth:
    """A backend with a subject, on a network.

    rehearsal: whether it stands in for itself with random weights, as ``estimate`` has it.
    """

    backend: str
    subject: SubjectFile
    network: str
    rehearsal: bool = False


@dataclass(frozen=True, kw_only=True)
class Station:
    """One stop of a sweep: the subjects that are open together."""

    sweep: int
    subjects: tuple[SubjectFile, ...]


def stations(subjects: Sequence[SubjectFile], schedule: Schedule) -> Iterator[Station]:
    """Every stop in order: all subjects in each sweep, forwards and backwards in turn."""
    for sweep in range(schedule.sweeps):
        order = iter(subjects if sweep % 2 == 0 else tuple(reversed(subjects)))
        while together := tuple(islice(order, schedule.subjects_at_once)):
            yield Station(sweep=sweep, subjects=together)


class Bay:
    """The backends that are open together at one station.

    opener: makes a berth's backend.
    room: of the memory that they share. schedule: which of them have a warm-up.
    """

    def __init__(
        self,
        opener: Callable[[Berth], Backend],
        progress: Progress,
        subjects: Subjects,
        room: Room,
        schedule: Schedule,
    ) -> None:
        self._opener = opener
        self._progress = progress
        self._subjects = subjects
        self._room = room
        self._schedule = schedule
        self._stack = ExitStack()
        self._open: dict[Berth, Backend] = {}
        self._logits: dict[tuple[Berth, int], Logits] = {}

    def __enter__(self) -> Bay:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()
        self._stack.close()

    def prepare(self, berths: Sequence[Berth], timed: Container[Berth]) -> list[Berth]:
        """Opens each berth's backend and loads its subject: of as many as memory is enough for, of one at least.

        timed: which are to be timed, and get their first warm-up here.

        Returns: the berths that are open, in the order given.
        """
        for name in dict.fromkeys(berth.backend for berth in berths):
            own = [berth for berth in berths if berth.backend == name]
            opened = self._prepare_backend(name, own, timed)
            if left := len(own) - opened:
                self._progress(f"{name}: later, as memory is short", left, left)
        return [berth for berth in berths if berth in self._open]

    def _prepare_backend(self, name: str, berths: Sequence[Berth], timed: Container[Berth]) -> int:
        """Opens all berths of one backend or none; where nothing else is open, those of as many subjects as fit.

        A subject is never divided: its networks and its rehearsal are there to take turns.

        Returns: how many are open.
        """
        alone, opened = not self._open, dict[Berth, Backend]()
        warmed = self._schedule.warmups(name) > 0
        with ExitStack() as stack:
            for subject in dict.fromkeys(berth.subject for berth in berths):
                own = [berth for berth in berths if berth.subject is subject]
                wanted = len(own) if alone else len(berths) - len(opened)
                if (self._open or opened) and not self._room.fits(name, wanted):
                    if not alone:
                        opened.clear()
                    break
                for berth in own:
                    opened[berth] = self._prepare_one(berth, stack, warm_up=warmed and berth in timed)
                    self._room.took(name)
            if opened:
                self._open |= opened
                self._stack.push(stack.pop_all())
        self._room.gave_back()
        return len(opened)

    def _prepare_one(self, berth: Berth, stack: ExitStack, *, warm_up: bool) -> Backend:
        what = "rehearsal" if berth.rehearsal else "set-up"
        label = f"{berth.backend}: {what} ({berth.subject.name}){_where([berth])}"
        steps = 1 + warm_up
        self._progress(label, 0, steps)
        backend = stack.enter_context(self._opener(berth))
        backend.prepare(berth.subject.path)
        self._progress(label, 1, steps)
        if warm_up:
            self._infer(backend, berth, berth.subject.images[:1])
            self._progress(label, 2, steps)
        return backend

    def byte_source(self, berth: Berth) -> str:
        """Where the backend counts its bytes; empty where it does not say."""
        return str(getattr(self._open[berth], "byte_source", None) or "")

    def time(self, runs: Mapping[Berth, range], station: Station) -> dict[Berth, list[RunCost]]:
        """The cost of every timed run of one image, by berth; the berths take turns, in alternating order.

        runs: their numbers among all of a berth's, which choose the images; at least one.
        """
        costs: dict[Berth, list[RunCost]] = {berth: [] for berth in runs}
        most = max(len(own) for own in runs.values())
        warmup = max(self._schedule.warmups(berth.backend) for berth in runs)
        steps = warmup + most
        turns = {berth: {warmup + turn for turn in spread(most, len(own))} for berth, own in runs.items()}
        names = ", ".join(dict.fromkeys(berth.subject.name for berth in runs))
        label = f"{names}: timed runs, sweep {station.sweep + 1}{_where(runs)}"
        for step in range(min(1, warmup), steps):
            self._progress(label, step, steps)
            order = [berth for berth in runs if step in turns[berth] or step < self._schedule.warmups(berth.backend)]
            for berth in order if step % 2 == 0 else reversed(order):
                picture = picture_of_run(berth.subject, runs[berth].start + len(costs[berth]))
                logits, cost = self._infer(self._open[berth], berth, berth.subject.images[picture : picture + 1])
                if step >= warmup:
                    costs[berth].append(cost)
                    self._logits[berth, picture] = logits
        self._progress(label, steps, steps)
        return costs

    def compare(self, berth: Berth, plain: Logits, batch: int) -> SecureAccuracy:
        """The berth's logits of its subject's chosen images beside their plaintext logits, ``plain``.

        Images that no timed run had go through it here, ``batch`` at a time.
        """
        file = berth.subject
        chosen = file.chosen
        missing = [picture for picture in chosen if (berth, picture) not in self._logits]
        label = f"{berth.backend}: test images ({file.name})"
        for start in range(0, len(missing), batch):
            self._progress(label, start, len(missing))
            pictures = missing[start : start + batch]
            logits = self._infer(self._open[berth], berth, file.images[pictures])[0]
            self._logits |= {(berth, picture): logits[i : i + 1] for i, picture in enumerate(pictures)}
        if missing:
            self._progress(label, len(missing), len(missing))
        logits = np.concatenate([self._logits[berth, picture] for picture in chosen])
        return SecureAccuracy(
            backend=berth.backend,
            subject=file.name,
            images=len(chosen),
            agreement_with_plaintext=float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
            max_abs_logit_error=float(np.abs(logits.astype(np.float64) - plain).max()),
            accuracy=None if file.labels is None else accuracy(logits, file.labels[chosen]),
        )

    def _infer(self, backend: Backend, berth: Berth, images: Images) -> tuple[Logits, RunCost]:
        name, file = berth.backend, berth.subject
        logits, cost = backend.infer(images)
        expected = (len(images), *self._subjects.graphs[file.name].output_shape)
        if logits.shape != expected:
            raise MeasureError(
                f"backend {name!r} gave logits of shape {logits.shape} for {file.name}, expected {expected}"
            )
        if not np.isfinite(logits).all():
            raise MeasureError(
                f"backend {name!r} gave logits that are not finite for {file.name}; nothing was recorded"
            )
        return logits, cost


def picture_of_run(file: SubjectFile, run: int) -> int:
    """Which image a run takes: those that logits are compared on first, then the others, then all again."""
    chosen = file.chosen
    run %= len(file.images)
    if run < len(chosen):
        return chosen[run]
    return sorted(set(range(len(file.images))) - set(chosen))[run - len(chosen)]


def _where(berths: Iterable[Berth]) -> str:
    """On which networks, for a label; empty on loopback alone."""
    networks = list(dict.fromkeys(berth.network for berth in berths))
    return "" if networks == [LOOPBACK] else f" on {', '.join(networks)}"
