"""The order of a measurement: sweeps over the subjects, and within them every backend in turn, run by run.

A machine drifts. Two figures can be compared when they were taken in the same seconds: all backends of one subject are
open together, each repetition runs every one of them once, and the order turns around at each repetition, so that none
always runs on another's warm caches. A backend of fewer runs sits out repetitions, evenly over their time; one of a
single run takes no turns and is open alone. Where memory is too short for all of them, a backend with all its subjects
follows the others, and only a backend that does not fit by itself is divided.

Networks are visited one after the other, as every backend on every network at once takes more memory than most machines
have; backends that are named for it are open on all networks together and take turns on them too.

Subjects are too many to be open together; so that drift hits them alike, they are all visited in each of several
sweeps, every other one in reverse order, and the runs are divided among the sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice

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
    room: of the memory that they share.
    """

    def __init__(self, opener: Callable[[Berth], Backend], progress: Progress, subjects: Subjects, room: Room) -> None:
        self._opener = opener
        self._progress = progress
        self._subjects = subjects
        self._room = room
        self._stack = ExitStack()
        self._open: dict[Berth, Backend] = {}

    def __enter__(self) -> Bay:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()
        self._stack.close()

    def prepare(self, berths: Sequence[Berth]) -> list[Berth]:
        """Opens each berth's backend and loads its subject: of as many as memory is enough for, of one at least.

        Returns: the berths that are open.
        """
        for (name, _), own in groupby(berths, key=lambda berth: (berth.backend, berth.rehearsal)):
            self._prepare_backend(name, list(own))
        return list(self._open)

    def _prepare_backend(self, name: str, berths: Sequence[Berth]) -> None:
        """Opens all berths of one backend or none; where nothing else is open, as many as fit."""
        alone, opened = not self._open, dict[Berth, Backend]()
        with ExitStack() as stack:
            for berth in berths:
                missing = len(berths) - len(opened)
                if (self._open or opened) and not self._room.fits(name, 1 if alone else missing):
                    if not alone:
                        opened.clear()
                    break
                opened[berth] = self._prepare_one(berth, stack)
                self._room.took(name)
            if opened:
                self._open |= opened
                self._stack.push(stack.pop_all())
        if len(opened) < len(berths):
            self._room.gave_back()
            left = len(berths) - len(opened)
            self._progress(f"{name}: later, as memory is short", left, left)

    def _prepare_one(self, berth: Berth, stack: ExitStack) -> Backend:
        what = "rehearsal" if berth.rehearsal else "set-up"
        label = f"{berth.backend}: {what} ({berth.subject.name}){_where([berth])}"
        self._progress(label, 0, 1)
        backend = stack.enter_context(self._opener(berth))
        backend.prepare(berth.subject.path)
        self._progress(label, 1, 1)
        return backend

    def byte_source(self, berth: Berth) -> str:
        """Where the backend counts its bytes; empty where it does not say."""
        return str(getattr(self._open[berth], "byte_source", None) or "")

    def time(self, runs: Mapping[Berth, range], station: Station, warmup: int) -> dict[Berth, list[RunCost]]:
        """The cost of every timed run of one image, by berth; the berths take turns, in alternating order.

        runs: their numbers among all of a berth's, which choose the images; at least one.
        """
        costs: dict[Berth, list[RunCost]] = {berth: [] for berth in runs}
        most = max(len(own) for own in runs.values())
        steps = warmup + most
        taking_part = {
            berth: {*range(warmup), *(warmup + turn for turn in spread(most, len(own)))} for berth, own in runs.items()
        }
        names = ", ".join(dict.fromkeys(berth.subject.name for berth in runs))
        label = f"{names}: timed runs, sweep {station.sweep + 1}{_where(runs)}"
        for step in range(steps):
            self._progress(label, step, steps)
            order = [berth for berth in runs if step in taking_part[berth]]
            for berth in order if step % 2 == 0 else reversed(order):
                images = berth.subject.images
                done = step if step < warmup else warmup + len(costs[berth])
                picture = (runs[berth].start + done) % len(images)
                cost = self._infer(berth, images[picture : picture + 1])[1]
                if step >= warmup:
                    costs[berth].append(cost)
        self._progress(label, steps, steps)
        return costs

    def compare(self, berth: Berth, plain: Logits, batch: int) -> SecureAccuracy:
        """Runs the berth over its subject's chosen images, ``batch`` at a time, beside their plaintext logits."""
        file = berth.subject
        chosen = file.chosen
        label = f"{berth.backend}: test images ({file.name})"
        parts: list[Logits] = []
        for start in range(0, len(chosen), batch):
            self._progress(label, start, len(chosen))
            parts.append(self._infer(berth, file.images[chosen[start : start + batch]])[0])
        self._progress(label, len(chosen), len(chosen))
        logits = np.concatenate(parts)
        return SecureAccuracy(
            backend=berth.backend,
            subject=file.name,
            images=len(chosen),
            agreement_with_plaintext=float(np.mean(logits.argmax(axis=1) == plain.argmax(axis=1))),
            max_abs_logit_error=float(np.abs(logits.astype(np.float64) - plain).max()),
            accuracy=None if file.labels is None else accuracy(logits, file.labels[chosen]),
        )

    def _infer(self, berth: Berth, images: Images) -> tuple[Logits, RunCost]:
        name, file = berth.backend, berth.subject
        logits, cost = self._open[berth].infer(images)
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


def _where(berths: Iterable[Berth]) -> str:
    """On which networks, for a label; empty on loopback alone."""
    networks = list(dict.fromkeys(berth.network for berth in berths))
    return "" if networks == [LOOPBACK] else f" on {', '.join(networks)}"
